"What makes a step faster changes nothing in its result beyond rounding, and gives way where it cannot be had"
import gc, pickle, subprocess, sys, weakref
from types import SimpleNamespace
import pytest, torch
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from resnet_course import loading, speed
from resnet_course.kit.files import CourseError
from resnet_course.kit.runs import measured_fit
from resnet_course.kit.timing import Clock, profile_epoch, training_step
from resnet_course.training import CPUMixedPrecision, get_learner
from resnet_course.fcn import get_fcn
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18
from resnet_course.bottleneck import Bottleneck, resnet50
from resnet_course.classics import resnet_b, resnet_v1
from resnet_course.preact import preact_resnet
from resnet_course.loading import cached_data
from resnet_course.speed import (_ConvAsProduct, _kernels, fast_learner, FastBlock, FastConv2d, FastNorm, FusedAdam,
                                 speed_up, TrimMemory)
from conftest import one_line, tiny_learner

needs_cc = pytest.mark.skipif(_kernels(torch.float32) is None, reason='no C compiler')
def rel(a, b): return ((a-b).norm()/b.norm().clamp(min=1e-12)).item()
def random_norms(net):
    "Else the branches of a fresh net are silent"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, .3, 2.); nn.init.normal_(m.bias); nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, .5, 2.)
            if len(m.weight)>2: m.weight.data[::3] *= -1
    return net
def with_gradients(net, x):
    x = x.detach().clone().requires_grad_()
    y = net(x)
    torch.manual_seed(1)
    (y*torch.randn_like(y)).sum().backward()
    return {'output':y, 'input':x.grad, **{k:p.grad for k,p in net.named_parameters()}, **dict(net.named_buffers())}

# --- batch norm, addition, ReLU ---------------------------------------------------------------------------------
@needs_cc
@pytest.mark.parametrize('dtype, eps', [(torch.double,1e-10), (torch.float32,2e-4), (torch.bfloat16,2e-2)])
@pytest.mark.parametrize('shape', [(2,3,5,7), (9,33,1,2), (4,64,8,8), (1,1,3,1), (300,5,1,1)])
@pytest.mark.parametrize('relu, add', [(False,False), (True,False), (True,True)])
def test_norm_equals_the_plain_one(dtype, eps, shape, relu, add):
    "With the same input, rounded to the type; the plain one in double"
    torch.manual_seed(0)
    c = shape[1]
    x,r,g = (torch.randn(shape).to(dtype) for _ in range(3))
    x = x*3+2
    plain = random_norms(nn.Sequential(nn.BatchNorm2d(c)))[0]
    fast = FastNorm(deepcopy(plain).double() if dtype is torch.double else deepcopy(plain), relu)
    plain.double()
    def run(bn, x, r, g, f):
        x,r = x.detach().requires_grad_(),r.detach().requires_grad_()
        y = f(bn, x, r if add else None)
        y.backward(g)
        return [y, x.grad, bn.weight.grad, bn.bias.grad, bn.running_mean, bn.running_var] + [r.grad]*add
    def plainly(bn, x, r):
        y = bn(x)
        if add: y = y+r
        return y.relu() if relu else y
    a = run(fast, x, r, g, lambda bn,x,r: bn(x, r))
    b = run(plain, x.double(), r.double(), g.double(), plainly)
    assert a[0].dtype==dtype and fast.num_batches_tracked==1
    for what,p,q in zip(('output','dx','dweight','dbias','mean','var','dr'), a, b):
        scale = q.abs().max().clamp(min=1)
        assert (p.double()-q).abs().max()/scale < eps*(10 if what.startswith('d') else 1), what

@needs_cc
def test_bf16_is_rounded_to_the_nearest():
    "Output and gradient are those of fp32, rounded once"
    torch.manual_seed(0)
    x,r,g = (torch.randn(4,48,6,5).bfloat16() for _ in range(3))
    def run(dtype):
        bn = random_norms(nn.Sequential(nn.BatchNorm2d(48)))[0]
        xs = x.detach().to(dtype).clone().requires_grad_()
        y = FastNorm(bn, True)(xs, r.to(dtype))
        y.backward(g.to(dtype))
        return y,xs.grad
    torch.manual_seed(1); a = run(torch.bfloat16)
    torch.manual_seed(1); b = run(torch.float32)
    for p,q in zip(a, b): assert (p!=q.bfloat16()).float().mean()<.001

@needs_cc
@pytest.mark.parametrize('used', [(0,), (1,), (0,1)])
def test_both_results_of_a_norm_with_a_shortcut(used):
    "Their gradients add up, whichever of them are used"
    torch.manual_seed(0)
    plain = random_norms(nn.Sequential(nn.BatchNorm2d(4)))[0].double()
    fast = FastNorm(deepcopy(plain), True)
    x,r,g = (torch.randn(3,4,5,6).double().requires_grad_() for _ in range(3))
    y = fast(x, r)
    both,z = (y, y.twin),(plain(x)+r).relu()
    assert (y==y.twin).all()
    a = torch.autograd.grad(sum((both[i]*g*(i+1)).sum() for i in used), (x,r,fast.weight,fast.bias))
    b = torch.autograd.grad((z*g*sum(i+1 for i in used)).sum(), (x,r,plain.weight,plain.bias))
    for p,q in zip(a, b): assert (p-q).abs().max()<1e-10

@needs_cc
def test_no_activation_outlives_its_step():
    net,refs = speed_up(ResNet(5, [2,2,1,1])),[]
    blocks = [m for m in net.modules() if isinstance(m, FastBlock)]
    for m in blocks: m.register_forward_hook(lambda m,_,out: refs.append(weakref.ref(out)))
    gc.disable()
    try: net(torch.randn(2,3,64,64)).sum().backward()
    finally: gc.enable()
    assert len(refs)==len(blocks) and not any(r() is not None for r in refs)

@needs_cc
def test_norm_in_any_layout_and_number_of_threads():
    "The same to the last bit"
    x,r = torch.randn(4,16,9,5),torch.randn(4,16,9,5)
    def run(x, r):
        bn = FastNorm(nn.BatchNorm2d(16), True)
        x = x.detach().requires_grad_()
        y = bn(x, r)
        y.pow(2).sum().backward()
        return y.contiguous(),x.grad.contiguous(),bn.weight.grad
    expected = run(x, r)
    last = dict(memory_format=torch.channels_last)
    others = [run(x.to(**last), r), run(x.to(**last), r.to(**last)), run(torch.cat([x,x], 3)[...,:5], r)]
    try:
        torch.set_num_threads(2)
        others.append(run(x, r))
    finally: torch.set_num_threads(1)
    for o in others: assert all((a==b).all() for a,b in zip(expected, o))

@needs_cc
def test_norm_keeps_nan_and_large_values():
    bn = FastNorm(nn.BatchNorm2d(2), True)
    x = torch.randn(2,2,3,3).bfloat16()
    x[0,0,0,0] = float('nan')
    y = bn(x)
    assert y[:,0].isnan().all() and y[:,1].isfinite().all()
    x = torch.randn(8,2,5,5).double()*1e-2+1e3
    plain,fast = nn.BatchNorm2d(2).double(),FastNorm(nn.BatchNorm2d(2).double(), False)
    assert (plain(x)-fast(x)).abs().max()<1e-6
    x = x.float()
    assert (plain.float().double()(x.double())-FastNorm(nn.BatchNorm2d(2), False)(x)).abs().max()<.05

@needs_cc
def test_norm_gives_way():
    "To the plain one: in evaluation, frozen, without statistics or weights, with a cumulative average, for one value"
    x = torch.randn(3,4,5,5)
    odd = [nn.BatchNorm2d(4, **o) for o in (dict(affine=False), dict(track_running_stats=False), dict(momentum=None))]
    for bn in odd:
        fast = FastNorm(deepcopy(bn), True)
        assert (fast(x)==bn(x).relu()).all() and (fast(x, x)==(bn(x)+x).relu()).all()
    with pytest.raises(ValueError, match='more than 1 value'): FastNorm(nn.BatchNorm2d(4), True)(torch.randn(1,4,1,1))
    with pytest.raises(ValueError, match='4D'): FastNorm(nn.BatchNorm2d(4), True)(torch.randn(2,4))
    bn = random_norms(nn.Sequential(nn.BatchNorm2d(4)))[0].eval()
    before = bn.running_mean.clone()
    assert (FastNorm(bn, True)(x, x)==(bn(x)+x).relu()).all() and (bn.running_mean==before).all()

def test_without_a_compiler(monkeypatch):
    "Plain PyTorch, with the same result"
    monkeypatch.setenv('CC', 'no-such-compiler')
    _kernels.cache_clear()
    try:
        assert _kernels(torch.float32) is None
        net = random_norms(ResNet(5, [1,1,1,1]))
        x = torch.randn(3,3,40,40)
        a,b = with_gradients(speed_up(deepcopy(net)), x),with_gradients(net, x)
        for k in b: assert rel(a[k].double(), b[k].double())<1e-5, k
    finally: _kernels.cache_clear()

# --- convolutions -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('ks, stride, padding, h, w', [(3,1,1,4,4), (3,2,1,8,8), (3,2,1,7,5), (7,2,3,9,6), (2,2,0,6,6),
                                                       (3,1,0,3,3), (5,3,2,10,4), (1,1,0,6,5),
                                                       (1,2,0,6,5), (1,1,1,2,2)])
def test_convolution_as_a_product(ks, stride, padding, h, w):
    torch.manual_seed(0)
    x,wt = (torch.randn(s, dtype=torch.double).requires_grad_() for s in ((3,2,h,w), (5,2,ks,ks)))
    y,z = _ConvAsProduct.apply(x, wt, stride, padding),F.conv2d(x, wt, stride=stride, padding=padding)
    g = torch.randn_like(z)
    for a,b in zip((y, *torch.autograd.grad(y, (x,wt), g)), (z, *torch.autograd.grad(z, (x,wt), g))):
        assert a.shape==b.shape and (a-b).abs().max()<1e-12

def test_when_a_convolution_is_a_product(monkeypatch):
    "Is used up to 8x8 and for 1x1, agrees with fp32 within bf16's rounding, and leaves the rest alone"
    used = []
    apply = _ConvAsProduct.apply
    monkeypatch.setattr(_ConvAsProduct, 'apply', lambda *args: used.append(1) or apply(*args))
    torch.manual_seed(0)
    for ks,size,stride,n in ((3,8,1,1), (3,16,2,1), (3,9,1,0), (3,20,2,0), (1,8,1,1), (1,20,1,1), (1,20,2,0)):
        conv = FastConv2d(nn.Conv2d(16, 24, ks, stride, padding=ks//2, bias=False))
        x = torch.randn(4, 16, size, size, requires_grad=True)
        used.clear()
        with torch.autocast('cpu', torch.bfloat16): y = conv(x)
        assert len(used)==n and y.dtype==torch.bfloat16
        g = torch.randn_like(y)
        plain = nn.Conv2d.forward(conv, x)
        a,b = (torch.autograd.grad(o, (x, conv.weight), g.to(o.dtype)) for o in (y, plain))
        for p,q in zip(a, b): assert p.dtype==torch.float32 and rel(p, q)<.015
        used.clear()
        conv(x)
        with torch.autocast('cpu', torch.bfloat16): conv.eval()(x)
        assert not used

def test_frozen_parts():
    "No gradient where none is wanted"
    net = speed_up(ResNet(5, [1,1,1,1])).to(memory_format=torch.channels_last)
    for p in net[:5].parameters(): p.requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16): net(torch.randn(2,3,48,48)).float().sum().backward()
    assert all((p.grad is not None)==p.requires_grad for p in net.parameters())

# --- whole nets -------------------------------------------------------------------------------------------------
nets = {'fcn':lambda: get_fcn(5), 'resblock':lambda: get_fcn(5, lambda ni,nf: ResBlock(ni, nf, 2), widths=(8,16,32)),
        'resnet':lambda: ResNet(5, [2,1,1,1]), 'bottleneck':lambda: ResNet(5, [1,1,2,1], Bottleneck),
        'resnet_b':lambda: resnet_b(18, 5), 'resnet_v1':lambda: resnet_v1(50, 5), 'preact':lambda: preact_resnet(18, 5)}

@pytest.mark.parametrize('name', nets)
def test_a_net_equals_the_plain_one(name):
    "Output, all gradients and all statistics; evaluation to the last bit; state dicts both ways"
    torch.manual_seed(0)
    net = random_norms(nets[name]()).double()
    fast = speed_up(deepcopy(net))
    x = torch.randn(4,3,65,50).double()
    a,b = with_gradients(fast, x),with_gradients(net, x)
    assert a.keys()==b.keys()
    for k in b: assert rel(a[k].double(), b[k].double())<1e-8, k
    assert list(fast.state_dict())==list(net.state_dict())
    other = nets[name]().double()
    other.load_state_dict(fast.state_dict())
    fast.load_state_dict(net.state_dict())
    assert (fast.eval()(x)==net.eval()(x)).all()

def test_what_is_swapped():
    count = lambda net: {t:sum(type(m) is t for m in net.modules()) for t in (FastBlock, FastNorm, FastConv2d)}
    assert count(speed_up(resnet18(10)))=={FastBlock:8, FastNorm:22, FastConv2d:22}
    assert count(speed_up(resnet50(10)))=={FastBlock:16, FastNorm:55, FastConv2d:55}
    class Other(ResBlock):
        def forward(self, x): return self.branch(x)-self.shortcut(x)
    net = nn.Sequential(Other(4,4))
    x = torch.randn(2,4,9,9)
    expected = net(x)
    assert count(speed_up(net))=={FastBlock:0, FastNorm:2, FastConv2d:2} and rel(net(x), expected)<1e-5
    for last in (nn.Sequential(nn.Dropout(0.)), nn.Sequential(nn.Conv2d(4,4,3,padding=1)), SimpleSelfAttention(4)):
        block = ResBlock(4, 4)   # somebody's own, with one more layer
        block.branch.append(last)
        expected = block(x)
        assert count(speed_up(nn.Sequential(block)))[FastBlock]==0 and rel(block(x), expected)<1e-5
    odd = nn.Sequential(nn.Conv2d(4,4,3,groups=2,bias=False), nn.Conv2d(4,4,3), nn.Conv2d(4,4,(3,1),bias=False),
                        nn.Conv2d(4,4,3,dilation=2,bias=False), nn.Conv2d(4,4,3,bias=False,padding='same'),
                        nn.BatchNorm2d(4), nn.GELU())
    assert count(speed_up(odd))=={FastBlock:0, FastNorm:1, FastConv2d:0} and not odd[5].relu
    parallel = nn.ModuleDict({'norm':nn.BatchNorm2d(3), 'relu':nn.ReLU()})   # nobody says that they follow each other
    assert not speed_up(parallel)['norm'].relu and type(parallel['relu']) is nn.ReLU

def test_parameters_are_the_same_objects():
    net = resnet18(10)
    before = [*net.parameters(), *net.buffers()]
    fast = speed_up(net)
    assert all(a is b for a,b in zip(before, [*fast.parameters(), *fast.buffers()], strict=True))
    again = pickle.loads(pickle.dumps(deepcopy(fast)))
    x = torch.randn(2,3,64,64)
    assert rel(again(x), fast(x))<1e-6 and speed_up(fast) is fast and type(fast.stage1[0]) is FastBlock

# --- the optimiser ----------------------------------------------------------------------------------------------
def one_cycle(path, opt_func, epochs=2, then=None):
    learn = tiny_learner(path, opt_func=opt_func)
    with learn.no_bar(): learn.fit_one_cycle(epochs, 1e-2, wd=.3)
    return learn
def state(learn): return {k:o for k,o in learn.model.state_dict().items()}

def test_fused_adam_is_fastais(drawn):
    a,b = one_cycle(drawn, Adam),one_cycle(drawn, FusedAdam)
    for k,o in state(a).items(): assert torch.allclose(o, state(b)[k], atol=1e-5), k
    c = one_cycle(drawn, partial(OptimWrapper, opt=torch.optim.AdamW, eps=1e-5, betas=(.9,.99)))
    assert any(not torch.allclose(o, state(c)[k], atol=1e-5) for k,o in state(a).items())   # decays batch norms
    for x,y in zip(a.opt.state_dict()['state'], b.opt.state_dict()['state'], strict=True): assert x.keys()==y.keys()

@pytest.mark.parametrize('a, b', [(Adam,FusedAdam), (FusedAdam,Adam)])
def test_either_adam_goes_on_where_the_other_stopped(drawn, a, b):
    def go_on(opt_func):
        learn = one_cycle(drawn, a)
        sd = deepcopy(learn.opt.state_dict())
        learn.opt_func = opt_func
        learn.create_opt()
        learn.opt.load_state_dict(sd)
        with learn.no_bar(): learn.fit(1, 1e-2)
        return state(learn)
    x,y = go_on(a),go_on(b)
    for k in x: assert torch.allclose(x[k], y[k], atol=1e-5), k

def test_frozen_groups_and_other_options(drawn):
    def splitter(m): return [list(o.parameters()) for o in (m[0], m[1:])]
    learn = tiny_learner(drawn, opt_func=FusedAdam, splitter=splitter)
    learn.freeze()
    before = {k:o.clone() for k,o in state(learn).items()}
    learn.fit(1, slice(1e-4,1e-2))
    moved = {k for k,o in state(learn).items() if (o!=before[k]).any()}
    assert '0.0.weight' not in moved and '1.0.weight' in moved and '0.1.weight' in moved   # norms always train
    learn.opt.clear_state()
    assert all('step' not in o for o in learn.opt.state_dict()['state'])

# --- a learner --------------------------------------------------------------------------------------------------
def fake(kind='cpu'): return SimpleNamespace(device=torch.device(kind), path=Path('.'))
def losses(make, precision, n=20):
    set_seed(42)
    net = nn.Sequential(*ResNet(10, [1,1,1,1])[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    xb,yb = torch.randn(16,3,64,64),torch.randint(0,10,(16,))
    learn = make(fake(), net, precision, lr=3e-3)
    step = training_step(learn, xb, yb)
    return torch.tensor([(step(), learn.loss.item())[1] for _ in range(n)])

def test_twenty_steps_have_the_losses_of_fp32():
    plain = losses(get_learner, 'fp32')
    assert plain[-1]<plain[0]/2
    assert (losses(fast_learner, 'fp32')-plain).abs().max()<2e-3
    fast,slow = losses(fast_learner, 'bf16')-plain,losses(get_learner, 'bf16')-plain
    assert fast.abs().max()<.1 and fast.abs().max()<2*slow.abs().max()+.02   # bf16's own rounding, not more

def test_fast_learner(drawn):
    dls = cached_data(drawn, presize=24, resize=16, bs=16, cache=Path('cache'))
    learn = fast_learner(dls, get_fcn(10, widths=(8,16)), 'bf16')
    rec = measured_fit(learn, 1, 1e-3, Path('out/a.json'), model='fcn', recipe='small', size=16, seed=42)
    assert rec['complete'] and isinstance(learn.opt, FusedAdam) and learn.precision=='bf16'
    assert learn.model[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert speed.keep_memory()==any(isinstance(o, TrimMemory) for o in learn.cbs)
    learn.export('a.pkl')
    assert torch.isfinite(load_learner('a.pkl').get_preds(dl=dls.valid)[0]).all()
    assert fast_learner(dls, get_fcn(10), opt_func=SGD, metrics=[]).opt_func is SGD

def test_on_a_mocked_gpu(monkeypatch):
    "fp16 with gradient scaling, channels_last; loops for CPUs are not used there"
    learn = fast_learner(fake('cuda'), get_fcn(10))
    kinds = {type(o) for o in learn.cbs}
    assert {ChannelsLast, MixedPrecision}<=kinds and CPUMixedPrecision not in kinds and learn.precision=='fp16'
    monkeypatch.setattr(speed, '_kernels', lambda _: 1/0)
    x = torch.randn(2,3,8,8, device='meta')
    assert FastNorm(nn.BatchNorm2d(3).to('meta'), True)(x).shape==x.shape

def test_compile_keeps_the_names(monkeypatch):
    called = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self: called.append(self))
    learn = fast_learner(fake('cuda'), get_fcn(10), compile=True)
    assert called==[learn.model] and learn.model.state_dict().keys()==get_fcn(10).state_dict().keys()
    fast_learner(fake('cuda'), get_fcn(10))
    assert len(called)==1
    with pytest.raises(CourseError) as e: fast_learner(fake(), get_fcn(10), compile=True)
    assert one_line(e, 'GPU', 'leave it out')

@pytest.mark.parametrize('kind', ['cpu','cuda','mps'])
def test_batches_for_each_kind_of_device(drawn, monkeypatch, kind):
    "Pinned for CUDA; the statistics go where the batches are"
    pinned,moved = [],[]
    monkeypatch.setattr(loading, 'default_device', lambda: torch.device(kind))
    monkeypatch.setattr(Normalize, 'from_stats', classmethod(lambda cls, *a, cuda: moved.append(cuda) or cls()))
    monkeypatch.setattr(loading, 'AheadDL', lambda *a, **k: pinned.append(k['pin_memory']))
    monkeypatch.setattr(loading, 'DataLoaders', lambda *a, **k: SimpleNamespace())
    cached_data(drawn, presize=24, resize=16, bs=16, cache=Path('cache'))
    assert pinned==[kind=='cuda']*2 and moved==[kind!='cpu']

@pytest.mark.parametrize('takes', [None, 0, 1])
def test_keep_memory(monkeypatch, takes):
    "glibc is told never to map a piece of its own and never to give back; another C library is left alone"
    asked = []
    def mallopt(option, value): asked.append((option,value)); return takes
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(speed.ctypes, 'CDLL', lambda name: SimpleNamespace(**({} if takes is None else dict(mallopt=mallopt))))
    assert speed.keep_memory()==bool(takes)
    assert asked==([] if takes is None else [(-4,0),(-1,-1)][:1+takes])   # M_MMAP_MAX, M_TRIM_THRESHOLD
    monkeypatch.setattr(sys, 'platform', 'darwin')
    asked.clear()
    assert speed.keep_memory() is False and not asked

@pytest.mark.parametrize('platform, name, trims', [('linux','malloc_trim',1), ('linux','other',0), ('win32','malloc_trim',0)])
def test_trim_memory(monkeypatch, platform, name, trims):
    "Once in an epoch, where the C library can"
    asked = []
    monkeypatch.setattr(sys, 'platform', platform)
    monkeypatch.setattr(speed.ctypes, 'CDLL', lambda _: SimpleNamespace(**{name:asked.append}))
    TrimMemory().after_epoch()
    assert asked==[0]*trims

# --- the clock --------------------------------------------------------------------------------------------------
def test_clock(monkeypatch):
    now = [0.]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    clock = Clock()
    def work(seconds): now[0] += seconds
    inner = clock.timed('inner', work)
    def both(): work(2); inner(4); work(8)
    work(100)   # not in any part
    clock.to('outer'); both(); clock.to(None); work(100); clock.to('outer'); work(1); clock.to(None)
    assert clock.seconds=={'outer':11, 'inner':4}
    with pytest.raises(ZeroDivisionError): clock.timed('bad', lambda: 1/0)()
    assert clock.part is None

def test_the_parts_add_up_to_the_whole(drawn, monkeypatch):
    "On a clock that ticks at each look, from the first edge of the fit to the last"
    looks = []
    def look(): looks.append(len(looks)); return looks[-1]
    class Within(Callback):
        def before_fit(self): self.start = look()
        def after_epoch(self): self.seconds = look()-self.start
    within = Within()
    learn = tiny_learner(drawn, cbs=within)
    monkeypatch.setattr(time, 'perf_counter', look)
    parts = profile_epoch(learn)
    assert within.seconds < parts.sum() < looks[-1]
    begin,end = within.start-1,looks[-2]   # at the end both edges look
    assert parts.sum()==end-begin

def test_profile_finds_the_slow_part(drawn, monkeypatch):
    "64 photos in batches of 16: four; 24 to validate, in one. Only what waits takes time, on a clock of our own"
    now = [0.]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    def wait(seconds=1): now[0] += seconds
    class Slow(Callback):
        order = 20
        def __init__(self, event, training): setattr(self, event, lambda: wait(self.training==training))
    class SlowSGD(Optimizer):
        def __init__(self, params, lr): super().__init__(params, [sgd_step], lr=lr)
        def step(self, closure=None): wait(); super().step()
    def slow_decode(learn): learn.dls.train.dataset.tls[0].tfms.add(Transform(lambda x: (wait(1/16), x)[1]))
    slow = {'callbacks and the rest': lambda o: o.add_cb(Slow('after_loss', True)),
            'validation': lambda o: o.add_cb(Slow('after_pred', False)),
            'forward': lambda o: o.model[0].register_forward_hook(lambda m,*_: wait(m.training)),
            'backward': lambda o: o.model[0][0].weight.register_hook(lambda _: wait()),
            'decode': slow_decode,
            'optimiser': lambda o: setattr(o, 'opt_func', SlowSGD)}
    for part,slow_down in slow.items():
        learn = tiny_learner(drawn)
        slow_down(learn)
        s = profile_epoch(learn)
        assert s[s>0].to_dict()=={part: 1 if part=='validation' else 4}
        dl = learn.dls.train
        assert not {'create_item','create_batch'} & vars(dl).keys() and isinstance(dl.after_batch, Pipeline)

def test_profile_restores_the_loader_after_an_error(drawn):
    learn = tiny_learner(drawn)
    workers = learn.dls.train.fake_l.num_workers
    calls = []
    learn.model[0].register_forward_hook(lambda *_: 1/(3-len(calls)) and calls.append(1))
    with pytest.raises(ZeroDivisionError): profile_epoch(learn)
    assert not {'create_item','create_batch'} & vars(learn.dls.train).keys()
    assert learn.dls.train.fake_l.num_workers==workers

def test_part_of_an_epoch(drawn):
    class Count(Callback):
        n = 0
        def after_batch(self): self.n += self.training
    count = Count()
    profile_epoch(tiny_learner(drawn, cbs=count), .5)   # after a batch to warm up
    assert count.n==1+3

def test_fp16_goes_without_the_loops():
    net = speed_up(get_fcn(10, widths=(8,16))).half()
    assert net(torch.randn(2,3,16,16).half()).dtype==torch.float16 and net.training
