"What the course does on a CUDA GPU, on a device that only pretends to be one. `make gpu` (tests/gpu) asks a real one"
import gc, subprocess, weakref
from contextlib import contextmanager, nullcontext
import pytest, torch
from fastai.vision.all import *
from fastai.callback.fp16 import AMPMode, MixedPrecision
from resnet_course.doctor import mendable
from resnet_course import bench as benchmark, landscape
from resnet_course.kit import gpu, identity, runs, timing, weights
from resnet_course.kit.costs import copied
from resnet_course.kit.files import CourseError
from resnet_course.kit.runs import fit_seconds
from resnet_course.training import choose_precision, get_learner
from resnet_course.fcn import get_fcn
from resnet_course.loading import AheadDL, cached_data
from resnet_course.speed import fast_learner
from resnet_course.ingredients import Averaged, EMA, kept
from resnet_course.interpret import accuracy_by_size
from conftest import named_gpu, one_line, tiny_learner

def on(kind): return SimpleNamespace(device=torch.device(kind), path=Path('.'))

# --- the precision ------------------------------------------------------------------------------------------------
cards = [('NVIDIA H200',9,0,'bf16'), ('NVIDIA A100-SXM4-40GB',8,0,'bf16'), ('NVIDIA GeForce RTX 3060',8,6,'bf16'),
    ('NVIDIA L4',8,9,'bf16'), ('NVIDIA GeForce RTX 5090',12,0,'bf16'), ('Tesla T4',7,5,'fp16'), ('Tesla V100-SXM2-16GB',7,0,'fp16'),
    ('NVIDIA GeForce RTX 2080 Ti',7,5,'fp16'), ('NVIDIA GeForce GTX 1660 Ti',7,5,'fp32'), ('NVIDIA GeForce GTX 1080',6,1,'fp32'),
    ('Tesla P100-PCIE-16GB',6,0,'fp32'), ('Tesla K80',3,7,'fp32')]

@pytest.mark.parametrize('name, major, minor, want', cards, ids=[o[0] for o in cards])
def test_the_precision_that_suits_a_card(monkeypatch, name, major, minor, want):
    "bf16 needs no scaler, fp16 does; without tensor cores neither gains"
    named_gpu(monkeypatch, name, (major,minor))
    got,why = choose_precision('cuda')
    assert got==want and name in why
    learn = get_learner(on('cuda'), nn.Linear(2,2))
    modes = [o.amp_mode for o in learn.cbs if isinstance(o, MixedPrecision)]
    assert learn.precision==want and modes==([] if want=='fp32' else [AMPMode(want)])

# --- copies ---------------------------------------------------------------------------------------------------------
class Stream:
    "Notes what is asked of it"
    def __init__(self, device=None): self.device,self.waited = device,[]
    def record_event(self): return ('there', self)
    def wait_event(self, event): self.waited.append(event)

@pytest.fixture
def fake_copies(monkeypatch):
    "Copies to a GPU, each a plain tensor again; what was done to them, in which thread, and on which stream"
    calls,here,training = [],threading.local(),Stream('cuda')
    def note(what, **kw): calls.append(dict(what=what, thread=threading.current_thread(), stream=getattr(here, 'stream', None), **kw))
    @contextmanager
    def stream(s):
        before,here.stream = getattr(here, 'stream', None),s
        try: yield
        finally: here.stream = before
    @contextmanager
    def device(d):
        note('device', device=d)
        yield
    def pin(self, *args):
        note('pin')
        return self.clone()
    def send(b, device=None, non_blocking=False):
        note('send', device=device, non_blocking=non_blocking)
        return b
    monkeypatch.setattr(torch.cuda, 'Stream', Stream)
    monkeypatch.setattr(torch.cuda, 'stream', stream)
    monkeypatch.setattr(torch.cuda, 'device', device)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda *_: training)
    monkeypatch.setattr(Tensor, 'pin_memory', pin)
    monkeypatch.setattr(Tensor, 'record_stream', lambda self, s: note('keep', kept_for=s))
    monkeypatch.setattr(gpu, 'to_device', send)
    gpu._copies.cache_clear()
    yield SimpleNamespace(calls=calls, training=training)
    gpu._copies.cache_clear()

def pretend_cuda(dl):
    "`dl` takes its device for a GPU, and fastai moves nothing there"
    dl.__class__ = type('Pretends', (type(dl),), dict(device=property(lambda self: torch.device('cuda:0'), lambda self, v: None)))
    return dl

def test_batches_are_sent_by_the_thread_that_made_them(drawn, monkeypatch, fake_copies):
    "From pinned memory, without waiting, on a stream that is one for all loaders and not the training's"
    monkeypatch.setattr('fastai.data.load.to_device', lambda b, device: b)
    dls = cached_data(drawn, presize=24, resize=16, bs=16, cache=False)
    plain = [o[0].clone() for o in dls.valid]
    batches = list(pretend_cuda(dls.valid)) + list(pretend_cuda(dls.train))
    assert all((a==b[0]).all() for a,b in zip(plain, batches))   # the same pictures
    by = groupby(fake_copies.calls, lambda o: o['what'])
    assert len(by['pin'])==2*len(batches)==len(by['keep']) and len(by['send'])==len(batches)
    assert all(o['non_blocking'] for o in by['send']) and {o['device'] for o in by['send']+by['device']}=={torch.device('cuda:0')}
    main = threading.main_thread()
    assert all(o['thread'] is not main for o in by['pin']+by['send']) and all(o['thread'] is main for o in by['keep'])
    streams = {o['stream'] for o in by['send']}
    assert len(streams)==1 and fake_copies.training not in streams
    assert all(o['kept_for'] is fake_copies.training for o in by['keep'])   # or a later copy could take its place too early

def test_the_training_waits_for_each_copy_before_it_uses_it(fake_copies):
    batch,event = gpu.sent((torch.zeros(2),torch.ones(2)), torch.device('cuda:0'))
    assert event[0]=='there' and not fake_copies.training.waited
    assert gpu.received(batch, event) is batch and fake_copies.training.waited==[event]

@pytest.mark.parametrize('kind', ['cpu','mps',None])
def test_elsewhere_nothing_is_sent(fake_copies, kind):
    batch = torch.zeros(2),
    assert gpu.received(*gpu.sent(batch, kind and torch.device(kind))) is batch and not fake_copies.calls

def test_pytorch_pins_nothing_a_second_time(drawn):
    "What lies on a GPU cannot be pinned"
    dl = AheadDL(cached_data(drawn, presize=24, resize=16, bs=16, cache=False).train_ds, bs=8, pin_memory=True)
    assert not dl.pin_memory and not dl.fake_l.pin_memory and not dl.new().pin_memory

# --- switches of the process ----------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def flags():
    before = torch.backends.cudnn.benchmark,torch.get_float32_matmul_precision()
    yield before
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])

def now(): return torch.backends.cudnn.benchmark,torch.get_float32_matmul_precision()

class Sees(Callback):
    "The switches in each forward pass"
    order = 70
    def __init__(self): self.seen = []
    def after_pred(self): self.seen.append((tuple(self.xb[0].shape[-2:]), len(self.xb[0]), self.training, *now()))

class Sizes(Callback):
    "Pictures of another size in each epoch"
    order = -5
    def __init__(self, sizes): self.sizes = sizes
    def before_batch(self): self.learn.xb = (F.interpolate(self.x.as_subclass(Tensor), (self.sizes[self.epoch%len(self.sizes)],)*2),)

def tuned_learner(path, sizes=(32,)):
    learn = tiny_learner(path, cbs=[gpu.TunedKernels(), Sizes(sizes)])
    return learn.add_cb(Sees())

def test_importing_sets_nothing(flags):
    code = "import torch; f = lambda: (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()); a = f()\n" \
           "from resnet_course.all import *; import resnet_course.bench; assert f()==a, f()"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_a_learner_for_a_gpu_sets_nothing_yet(monkeypatch, flags):
    named_gpu(monkeypatch)
    learn = fast_learner(on('cuda'), get_fcn(10))
    assert sum(isinstance(o, gpu.TunedKernels) for o in learn.cbs)==1 and now()==flags
    assert not any(isinstance(o, gpu.TunedKernels) for o in fast_learner(on('cpu'), get_fcn(10)).cbs)

def test_kernels_are_tried_out_for_the_size_that_comes_first(drawn, flags):
    "Sizes that change would be tried out again and again: seconds for each"
    learn = tuned_learner(drawn, (32,24,40,32))
    learn.fit(4)
    by_epoch = groupby([o for o in learn.sees.seen if o[2]], lambda o: o[0])
    assert {side:{o[3] for o in seen} for side,seen in by_epoch.items()}=={(32,32):{True}, (24,24):{False}, (40,40):{False}}
    assert {o[4] for o in learn.sees.seen}=={'high'} and now()==flags

@pytest.mark.parametrize('what', [lambda l: l.fit(1), lambda l: l.lr_find(num_it=12, show_plot=False), lambda l: fit_seconds(l, 2)],
                         ids=['fit','lr_find','fit_seconds'])
def test_after_a_fit_they_are_as_before(drawn, flags, what):
    learn = tuned_learner(drawn)
    what(learn)
    assert now()==flags
    n = len(learn.sees.seen)
    learn.get_preds()
    learn.validate()
    assert {o[3:] for o in learn.sees.seen[n:]}=={(flags[0],'high')} and len(learn.sees.seen)>n   # one pass does not pay
    assert now()==flags

def test_the_copy_that_is_timed_is_tuned_too(drawn):
    "PyTorch remembers the first choice for a shape: without this, it would be the guess"
    learn,seen = tuned_learner(drawn),[]
    first(learn.model.modules(), lambda m: isinstance(m, nn.Conv2d)).register_forward_hook(lambda *_: seen.append(now()))
    fit_seconds(learn, 1)
    assert seen and set(seen)=={(True,'high')}

def test_after_a_fit_that_failed(drawn, flags):
    "The next one knows how they were"
    learn = tuned_learner(drawn)
    def fail(*_): raise RuntimeError('stop here')
    hook = learn.model[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError): learn.fit(1)
    hook.remove()
    learn.export(Path('a.pkl').absolute())
    learn.fit(1)
    assert now()==flags

@pytest.mark.parametrize('benchmark, products', [(True,'medium'), (True,'highest'), (False,'high')])
def test_what_the_user_has_set_stays(drawn, benchmark, products):
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(products)
    learn = tuned_learner(drawn, (32,24))
    learn.fit(2)
    assert now()==(benchmark,products)
    assert {o[4] for o in learn.sees.seen}=={'high' if products=='highest' else products}
    if benchmark: assert all(o[3] for o in learn.sees.seen)

@pytest.mark.parametrize('how', ['everywhere','cudnn'])
def test_whoever_wants_the_same_bits_gets_them(drawn, monkeypatch, how):
    "A race may end differently"
    if how=='cudnn': monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    else: monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    learn = tuned_learner(drawn)
    learn.fit(1)
    assert not any(o[3] for o in learn.sees.seen)
    with gpu.tuned(torch.device('cuda')): assert not now()[0]

@pytest.mark.parametrize('kind', ['cuda','cpu','mps'])
def test_tuned_for_a_while(flags, kind):
    with pytest.raises(ZeroDivisionError), gpu.tuned(torch.device(kind)):
        assert now()==((True,'high') if kind=='cuda' else flags)
        1/0
    assert now()==flags

def test_a_switch_of_pytorch_s_newer_kind_is_left_alone(drawn):
    "Then its older one cannot even be read"
    torch.backends.cuda.matmul.fp32_precision = 'tf32'
    try:
        with pytest.raises(RuntimeError): torch.get_float32_matmul_precision()
        learn = tiny_learner(drawn, cbs=[gpu.TunedKernels()])
        with learn.no_bar(), gpu.tuned(torch.device('cuda')): learn.fit(1)
        assert torch.backends.cuda.matmul.fp32_precision=='tf32'
    finally: torch.backends.cuda.matmul.fp32_precision = 'ieee'

def test_a_step_that_is_timed_leaves_no_switch(drawn, flags):
    learn = tuned_learner(drawn)
    step = timing.training_step(learn, *learn.dls.one_batch())
    step()
    assert now()==flags

def test_to_fp32_is_heard(monkeypatch):
    "By the callback that is left, too"
    named_gpu(monkeypatch)
    learn = get_learner(on('cuda'), net:=nn.Linear(2, 2))
    calls = learn.autocast_call
    calls.before_batch()
    assert learn.model is not net
    learn.model = net
    learn.to_fp32()
    calls.before_batch()
    assert learn.model is net

# --- the average of the weights ---------------------------------------------------------------------------------------
class Skips(Callback):
    "As fp16's gradient scaling does where a gradient is too large"
    order = MixedPrecision.order
    def __init__(self, steps): self.steps = steps
    def before_step(self):
        if self.train_iter in self.steps: raise CancelStepException

@pytest.mark.parametrize('skipped', [(), (0,), (1,2), (0,1,2,3)])
def test_steps_that_were_skipped_are_not_counted(drawn, skipped):
    learn = tiny_learner(drawn)
    model = learn.model = Averaged(learn.model, .9, every=2)
    learn.fit(1, cbs=[EMA(), Skips(skipped)])
    assert model.steps==model.seen==len(learn.dls.train)-len(skipped)

def test_no_step_reads_a_number_from_the_device(monkeypatch):
    "That would wait for it"
    net = Averaged(nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4)), .9, every=2)
    def waits(self, *args): raise AssertionError('waits for the GPU')
    for o in ('item','__bool__','__int__','__index__','tolist'): monkeypatch.setattr(Tensor, o, waits)
    for _ in range(5): net.update()
    monkeypatch.undo()
    assert net.steps==5 and net.seen==4

def test_the_count_is_saved(tmp_path):
    def make(): return Averaged(nn.Linear(2,2), .9, every=2)
    a,b = make(),make()
    for _ in range(3): a.update()
    torch.save(a.state_dict(), tmp_path/'a.pt')
    b.load_state_dict(torch.load(tmp_path/'a.pt', weights_only=True))
    assert (b.steps,b.seen)==(3,2)==(copied(a).steps,copied(a).seen)

# --- the bench ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('capability, want', [((7,5),'fp16'), ((8,0),'bf16'), ((6,1),'fp32')])
def test_rows_of_one_net_have_one_precision(drawn, monkeypatch, capability, want):
    "Whichever suits the card; chapter 14's step is fp32 and says so"
    named_gpu(monkeypatch, 'a card', capability)
    monkeypatch.setattr(benchmark, 'choose_precision', lambda *_: choose_precision('cuda'))
    b = benchmark._Bench(drawn, 1, True)
    monkeypatch.setattr(benchmark, 'training_step', lambda learn, *batch: learn.precision)
    monkeypatch.setattr(benchmark, 'plain_step', lambda net, opt, precision: lambda xb,yb: precision)
    monkeypatch.setattr(benchmark, 'fast_learner', lambda dls, net, precision, **kw: SimpleNamespace(precision=precision))
    monkeypatch.setattr(benchmark, 'get_learner', lambda dls, net, precision, **kw: SimpleNamespace(precision=precision))
    asked = {}
    for k,_,steps in benchmark._step_cases(b, 18, benchmark.resnet18, xresnet18, 32, b.batch(32,2), None):
        for what,step in steps.items(): asked[k,what] = step if isinstance(step, str) else step()
    chapter = {v for (k,what),v in asked.items() if what==benchmark._chapter_step}
    assert chapter=={'fp32'} and {v for (k,what),v in asked.items() if what!=benchmark._chapter_step}=={want}

@pytest.mark.parametrize('precision', ['fp16','bf16','fp32'])
def test_epochs_have_one_precision_too(drawn, monkeypatch, precision):
    asked = []
    class Learns:
        def __init__(self, dls, net, precision=None, **kw): asked.append(precision)
        no_bar = no_logging = lambda self: nullcontext()
        def fit(self, *args, cbs): cbs.seconds = [1,1]
    def plain(net, opt, precision):
        asked.append(precision)
        return lambda xb, yb: None
    for o in ('fast_learner','get_learner'): monkeypatch.setattr(benchmark, o, Learns)
    monkeypatch.setattr(benchmark, 'plain_step', plain)
    monkeypatch.setattr(benchmark, 'in_precision', lambda device, precision: asked.append(precision) or nullcontext())
    b = SimpleNamespace(device=torch.device('cpu'), precision=precision, seconds=0.)
    dls = cached_data(drawn, presize=24, resize=16, bs=16, cache=False)
    benchmark._epoch(b, 'plain loop', dls, get_fcn(10, widths=(8,)))
    b.device = torch.device('cuda')
    for what in ('course, crop and flip','fastai, tuned'): benchmark._epoch(b, what, dls, get_fcn(10))
    assert set(asked)=={precision} and len(asked)>3

def test_a_plain_step_in_fp16_scales_its_gradients(monkeypatch):
    "And skips a step that is too large, as the others do"
    made = []
    class Scaler(torch.amp.GradScaler):
        def __init__(self, device, enabled):
            super().__init__(device, init_scale=8., enabled=enabled)
            made.append(self)
        def scale(self, loss):
            scaled = super().scale(loss)
            made.append((scaled/loss).item())
            return scaled
    monkeypatch.setattr(torch.amp, 'GradScaler', Scaler)
    for precision,scale in (('fp16',8.), ('bf16',1.), ('fp32',1.)):
        made.clear()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3,4,3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        plain,w = deepcopy(net),net[0].weight
        step = timing.plain_step(net, torch.optim.SGD(net.parameters(), lr=1.), precision)
        xb,yb = torch.randn(4,3,8,8),torch.arange(4)
        step(xb, yb)
        assert made[0].is_enabled()==(precision=='fp16') and made[1]==scale
        F.cross_entropy(plain(xb), yb).backward()
        assert torch.allclose(w.detach(), plain[0].weight-plain[0].weight.grad, atol=2e-2)   # the scale is taken out again

@pytest.mark.parametrize('kind, want', [('cpu',{'bf16','fp32','copy'}), ('cuda',{'bf16','fp16','fp32','copy'}), ('mps',{'bf16','fp32','copy'})])
def test_peaks_of_what_is_computed_there(monkeypatch, kind, want):
    sides = []
    def interleaved(fs, repeats):
        for f in fs.values(): f()
        return pd.DataFrame({k:[1.]*repeats for k in fs})
    monkeypatch.setattr(timing, 'default_device', lambda: torch.device(kind))
    monkeypatch.setattr(timing, 'interleaved', interleaved)
    randn,ones = torch.randn,torch.ones
    def on_meta(f): return lambda *shape, device: sides.append(shape[-1]) or f(*shape, device='meta')
    monkeypatch.setattr(torch, 'randn', on_meta(randn))
    monkeypatch.setattr(torch, 'ones', on_meta(ones))
    for units in ('AVX-512','others'):   # matrices of 16 bits take minutes on a CPU that has no units for them
        sides.clear()
        monkeypatch.setattr(timing, 'matrix_units', lambda device=None: units)
        assert timing.machine_peaks(mb=1).keys()==want and max(sides[:-1])==(3072 if kind=='cpu' else 8192)
        assert sides.count(max(sides[:-1]))==len(want)-1-(units=='others')

# --- a memory that is full ------------------------------------------------------------------------------------------
full = {'CUDA':(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), 'GPU'),
    'CUDA error':(RuntimeError('CUDA error: out of memory'), 'GPU'), 'cuDNN':(RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), 'GPU'),
    'cuBLAS':(RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'), 'GPU'),
    'MPS':(RuntimeError('MPS backend out of memory (MPS allocated: 9.01 GB)'), 'GPU'),
    'CPU':(RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 'machine'),
    'NumPy':(MemoryError('Unable to allocate 9 GiB for an array'), 'machine')}

def fails(error):
    class Full(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, x): raise error
    return Full()

@pytest.mark.parametrize('error, whose', full.values(), ids=full)
def test_a_full_memory_is_called_one(drawn, error, whose):
    "Wherever an error is explained, and not as a fault of the net"
    says = f"the {whose}'s memory is too small: close what else uses it"
    for f in (lambda: weights.check_net('mine', 10, [16], lambda: fails(error)),
              lambda: accuracy_by_size(tiny_on(drawn, error), [16])):
        with pytest.raises(CourseError) as e: f()
        assert one_line(e, says) and 'does not take' not in str(e.value) and 'cannot be trained' not in str(e.value)
    assert str(mendable(error)).startswith(says)

def tiny_on(path, error):
    learn = tiny_learner(path)
    learn.model = fails(error)
    return learn

@pytest.mark.parametrize('error', [RuntimeError('mat1 and mat2 shapes cannot be multiplied'), ValueError('out of memory lane')], ids=str)
def test_other_errors_are_not(drawn, error):
    with pytest.raises(CourseError) as e: weights.check_net('mine', 10, [16], lambda: fails(error))
    assert one_line(e, 'cannot be trained with this recipe') and mendable(error) is None
    if isinstance(error, RuntimeError):
        with pytest.raises(CourseError) as e: accuracy_by_size(tiny_on(drawn, error), [16])
        assert one_line(e, 'does not take images of 16 px')

# --- copies of a net --------------------------------------------------------------------------------------------------
def fast_copy(learn): return fit_seconds(learn, 1)
def failing_copy(learn):
    "The copy's step fails, as where the GPU has no room for two"
    hook = learn.model[-1].register_forward_hook(lambda *_: 1/0)
    try: fit_seconds(learn, 1)
    except ZeroDivisionError: pass
    finally: hook.remove()
def macs_copy(learn): return identity.net_macs(learn.model, learn.dls.one_batch()[0], 32)
def start_copy(learn): return identity.net_start(learn.model, learn.dls.one_batch()[0])
def check_copy(learn): return weights.check_net('mine', 10, [32], lambda: get_fcn(10, widths=(8,16)))
def kept_copy(learn): return weights.says(kept(Averaged(learn.model, .9)), 32)
def folded_copy(learn): return landscape.fold_norms(learn.model)(torch.randn(2,3,32,32))
def surface_copy(learn): return landscape.surface(learn.model, *learn.dls.one_batch(), Path('s.json'), (-1,1), bf16=False)
def run_copy(learn): return runs.measured_fit(learn, 1, 1e-3, Path('r.json'), model='m', recipe='r', size=32, seed=1, command='c')
makers = [fast_copy, failing_copy, macs_copy, start_copy, check_copy, kept_copy, folded_copy, surface_copy, run_copy]

@pytest.mark.parametrize('make', makers, ids=lambda f: f.__name__)
@pytest.mark.parametrize('precision', ['fp32','bf16'])
def test_no_copy_of_a_net_outlives_its_use(drawn, monkeypatch, make, precision):
    "Else it keeps its part of the GPU's memory, gradients and optimiser included, until Python looks for circles"
    refs,learn = [],tiny_learner(drawn, precision)
    def noted(net):
        copy = copied(net)
        refs.extend(map(weakref.ref, copy.parameters()))
        return copy
    for o in (identity, runs, weights, landscape, sys.modules['resnet_course.ingredients']): monkeypatch.setattr(o, 'copied', noted)
    gc.collect()
    gc.disable()
    try:
        make(learn)
        assert refs and not [o for o in refs if o() is not None]
    finally: gc.enable()

# --- `make gpu` -------------------------------------------------------------------------------------------------------
top = Path(__file__).parent.parent
def pytest_of(*args, **env):
    args = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *map(str, args)]
    return subprocess.run(args, cwd=top, env={**os.environ, 'PYTHONPATH':str(top), **env}, capture_output=True, text=True)

def test_without_a_gpu_it_fails_in_one_line():
    "And is no part of the other tests, where it would seem to pass"
    res = pytest_of('--confcutdir=tests/gpu', 'tests/gpu', CUDA_VISIBLE_DEVICES='')
    assert res.returncode==1 and (res.stdout+res.stderr).strip()=='Exit: no CUDA GPU here: nothing was tested and nothing measured'
    assert pytest_of('tests', '--collect-only', f'--ignore-glob={top}/tests/test_*').stdout.strip().startswith('no tests collected')

def test_it_can_be_rehearsed():
    "What it tests is real code that runs, on a CPU in small; no result is written"
    before = sorted((top/'results').rglob('*'))
    res = pytest_of('--confcutdir=tests/gpu', 'tests/gpu', '--device', 'cpu', '-k', 'a_net_on_both and fcn or fp32 or cached_data')
    assert res.returncode==0 and '3 passed' in res.stdout, res.stdout[-3000:]
    assert sorted((top/'results').rglob('*'))==before
