"Mixed precision on a CPU and on a mocked GPU. Nothing here needs either: a CPU without bf16 units computes bf16 slowly"
import pickle
from contextlib import nullcontext, suppress
from types import SimpleNamespace
import pytest, torch
from fastai.vision.all import *
from fastai.callback.fp16 import AMPMode, MixedPrecision
from resnet_course.kit.timing import matrix_units
from resnet_course.training import choose_precision, CPUMixedPrecision, get_learner
from resnet_course.fcn import get_fcn
from resnet_course.resblock import ResBlock
from resnet_course.resnet import resnet18
from resnet_course.bottleneck import resnet50
from conftest import named_gpu, one_line, tiny_learner

def conv_kinds():
    "(ni, nf, ks, stride) of every convolution of the ladder, of a block of stride 3 and of the 7x7 stem"
    models = get_fcn(10), get_fcn(10, lambda ni,nf: ResBlock(ni,nf,2)), resnet18(10), resnet50(10), ResBlock(16,32,3)
    convs = [m for o in models for m in o.modules() if isinstance(m, nn.Conv2d)]
    kinds = {(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in convs}
    return sorted(kinds | {(3,64,7,2), (64,128,1,2)})

def conv_and_gradients(conv, x, bf16):
    x = x.detach().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bf16): y = conv(x)
    assert y.dtype==(torch.bfloat16 if bf16 else torch.float32)
    return y, *torch.autograd.grad(y.float().pow(2).sum(), (x, conv.weight))

@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_bf16_convolution_agrees_with_fp32(layout):
    torch.manual_seed(0)
    for ni,nf,ks,stride in conv_kinds():
        conv = nn.Conv2d(ni, nf, ks, stride, ks//2, bias=False).to(memory_format=layout)
        x = torch.randn(2, ni, 11, 9).to(memory_format=layout)
        both = conv_and_gradients(conv, x, True), conv_and_gradients(conv, x, False)
        for what,a,b in zip(('output','input gradient','weight gradient'), *both):
            err = (a.float()-b).norm()/b.norm()
            assert err<0.015, f'{what} of {ni}->{nf}, {ks}x{ks}, stride {stride}: relative error {err:.4f}'

class Spy(Callback):
    "Notes the types that a batch meets"
    order = 40
    def __init__(self): self.seen = set()
    def note(self, **kw): self.seen |= {(k,v) for k,v in kw.items()}
    def after_pred(self): self.note(pred=self.pred.dtype, autocast=torch.is_autocast_enabled('cpu'))
    def after_loss(self): self.note(loss=self.loss.dtype)
    def before_step(self):
        for p in self.model.parameters(): self.note(weight=p.dtype, grad=p.grad.dtype)

@pytest.mark.parametrize('precision, inside', [('bf16',torch.bfloat16), ('fp32',torch.float32)])
def test_inside_a_fit(drawn, precision, inside):
    learn,spy = tiny_learner(drawn, precision),Spy()
    def last(x): return x.is_contiguous(memory_format=torch.channels_last)
    def note(m, inp, out): spy.note(activation=out.dtype, channels_last=(last(inp[0]), last(m.weight), last(out)))
    first(m for m in learn.model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)
    learn.fit(1, 1e-3, cbs=spy)
    f32 = torch.float32
    assert spy.seen=={('activation',inside), ('channels_last',(precision=='bf16',)*3), ('pred',f32),
        ('autocast',False), ('loss',f32), ('weight',f32), ('grad',f32)}
    preds,_ = learn.get_preds()
    assert preds.dtype==f32 and preds.isfinite().all() and not torch.is_autocast_enabled('cpu')
    assert math.isfinite(learn.validate()[0])

@pytest.mark.parametrize('where', ['callback','model'])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, CancelBatchException])
def test_a_fit_that_fails_leaves_no_autocast_behind(drawn, error, where):
    "Else all that a notebook computes afterwards would be bf16"
    learn = tiny_learner(drawn, 'bf16')
    def fail(*_):
        if learn.train_iter==1: raise error('stop here')
    if where=='callback': learn.add_cb(Fails(fail))
    else: learn.model[0].register_forward_hook(fail)
    with nullcontext() if error is CancelBatchException else pytest.raises(error): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu') and (torch.randn(2,2)@torch.randn(2,2)).dtype==torch.float32

class Fails(Callback):
    order = 20
    def __init__(self, fail): self.fail = fail
    def before_batch(self): self.fail()

# --- the model is left as it is -----------------------------------------------------------------------------------
def own_forward(net):
    "The net with a forward that the user has set on it"
    of_class = net.forward
    def mine(x): return of_class(x)*1
    net.forward = mine
    return net

def with_own_forward(drawn, **kwargs):
    learn = tiny_learner(drawn, 'bf16', **kwargs)
    own_forward(learn.model)
    return learn,own_things(learn.model)

def own_things(net): return {k:o for k,o in vars(net).items() if k!='training'}

class Raises(Callback):
    "An error or a cancellation at an event of the second batch, after all other callbacks or before"
    def __init__(self, event, error, order): self.event,self.error,self.order = event,error,order
    def __call__(self, event):
        if event==self.event and (self.learn.train_iter==1 or 'batch' not in event): raise self.error('stop here')

@pytest.mark.parametrize('order', [-100, 5000])
@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss','after_batch','before_validate'])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, CancelBatchException, CancelTrainException,
                                   CancelEpochException, CancelFitException])
def test_a_forward_of_its_own_stays(drawn, event, error, order):
    "Whatever ends a batch"
    learn,before = with_own_forward(drawn)
    net = learn.model
    with suppress(RuntimeError, KeyboardInterrupt, CancelBatchException, CancelTrainException):   # where none is caught
        learn.fit(1, cbs=Raises(event, error, order))
    assert learn.model is net and own_things(net)==before

@pytest.mark.parametrize('mine', [True, False])
def test_every_pass_is_bf16_and_the_model_as_before(drawn, mine):
    learn,before = with_own_forward(drawn)
    if not mine: del learn.model.forward,before['forward']
    net,seen = learn.model,Counter()
    net[0][0].register_forward_hook(lambda m,i,o: seen.update([o.dtype]))
    learn.fit(1)
    learn.get_preds()
    learn.lr_find(num_it=10, show_plot=False)
    assert learn.model is net and own_things(net)==before and set(seen)=={torch.bfloat16}
    net(torch.randn(2,3,32,32))
    assert seen[torch.float32]==1

class Looks(Callback):
    "Predicts in the middle of an epoch, before or after the other callbacks"
    def __init__(self, event, order): self.event,self.order,self.busy = event,order,False
    def __call__(self, event):
        if event!=self.event or self.busy or not self.learn.training: return
        self.busy = True
        inner = get_learner(self.learn.dls, self.learn.model, 'bf16')   # two learners, one model
        with inner.no_bar(), inner.no_logging(): inner.get_preds()
        self.learn.model.train()
        self.busy = False

@pytest.mark.parametrize('order', [-100, 20, 5000])
@pytest.mark.parametrize('event', ['before_batch','after_pred','after_batch'])
def test_a_fit_within_a_fit(drawn, event, order):
    learn,before = with_own_forward(drawn)
    net,seen = learn.model,Counter()
    net[0][0].register_forward_hook(lambda m,i,o: seen.update([o.dtype]))
    learn.fit(1, cbs=Looks(event, order))
    assert learn.model is net and vars(net)['forward'] is before['forward'] and set(seen)=={torch.bfloat16}

def test_a_compiled_model(drawn):
    "It runs compiled, in bf16, and stays compiled"
    learn = tiny_learner(drawn, 'bf16')
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    plain = learn.model
    net = learn.model = torch.compile(plain, backend=backend)
    before,seen = own_things(net),set()
    class See(Callback):
        def after_pred(self): seen.add(self.pred.dtype)
    learn.fit(1, cbs=See())
    assert graphs and learn.model is net and own_things(net)==before and seen=={torch.float32}
    with torch.no_grad(): net(torch.randn(2,3,32,32))
    assert own_things(net)==before

def test_a_learner_that_failed_can_be_exported(drawn):
    learn = tiny_learner(drawn, 'bf16')
    with pytest.raises(RuntimeError): learn.fit(1, cbs=Raises('before_batch', RuntimeError, 5000))
    pickle.dumps(learn.model)
    learn.fit(1)

# --- the choice -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('caps, precision, word', [
    (dict(amx_bf16=True, avx512_bf16=True), 'bf16', 'AMX'), (dict(amx_bf16=False, avx512_bf16=True), 'bf16', 'AVX512'),
    (dict(avx512=True, amx_bf16=False), 'fp32', 'neither'), ({}, 'fp32', 'neither')])
def test_choice_on_a_cpu(monkeypatch, caps, precision, word):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: caps)
    chosen,why = choose_precision('cpu')
    assert chosen==precision and word in why

def test_choice_elsewhere(monkeypatch):
    assert choose_precision('mps')[0]=='fp32'
    monkeypatch.delattr(torch.cpu, 'get_capabilities')   # as in older versions of torch
    assert choose_precision('cpu')[0]=='fp32' and matrix_units('cpu')=='others'

def on(kind): return SimpleNamespace(device=torch.device(kind), path=Path('.'))
def mixed(learn): return [cb for cb in learn.cbs if isinstance(cb, (MixedPrecision,CPUMixedPrecision))]

def test_get_learner_follows_the_choice(monkeypatch):
    for caps,kinds in ((dict(amx_bf16=True), [CPUMixedPrecision]), ({}, [])):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: caps)
        learn = get_learner(on('cpu'), nn.Linear(2,2))
        assert [type(cb) for cb in mixed(learn)]==kinds and learn.precision==choose_precision('cpu')[0]

@pytest.mark.parametrize('asked, got, mode',
    [(None,'fp16',AMPMode.FP16), ('fp16','fp16',AMPMode.FP16), ('bf16','bf16',AMPMode.BF16)])
def test_get_learner_on_a_mocked_gpu(monkeypatch, asked, got, mode):
    named_gpu(monkeypatch)
    learn = get_learner(on('cuda'), nn.Linear(2,2), asked)
    cb, = mixed(learn)
    assert learn.precision==got and isinstance(cb, MixedPrecision) and cb.amp_mode==mode

def test_fp32_on_demand():
    for kind in ('cpu','cuda','mps'): assert mixed(get_learner(on(kind), nn.Linear(2,2), 'fp32'))==[]

@pytest.mark.parametrize('kind, precision', [('cpu','fp16'), ('cpu','int8'), ('cuda','fp8'), ('mps','bf16')])
def test_unknown_precision(kind, precision):
    with pytest.raises(Exception) as e: get_learner(on(kind), nn.Linear(2,2), precision)
    assert one_line(e, precision, kind, "use 'fp32'")
