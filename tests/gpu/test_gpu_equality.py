"A GPU computes what a CPU computes: each net, as it is and sped up, forward and backward; and each batch arrives as it was made"
import pytest, torch
from fastai.vision.all import *
from resnet_course.kit.files import no_room
from resnet_course.kit.timing import in_precision
from resnet_course.training import choose_precision
from resnet_course.degradation import cifar_resnet
from resnet_course.classics import resnet_b, resnet_v1
from resnet_course.d2l import d2l_resnet18
from resnet_course.keras_net import keras_resnet50
from resnet_course.preact import preact_resnet
from resnet_course.loading import cached_chapter_data, cached_data
from resnet_course.speed import speed_up
from resnet_course.ingredients import Averaged
from resnet_course.recipe import course_nets, recipe, recipe_net

nets = {k:partial(f, 10) for k,f in course_nets.items()} | {f'resnet_v1({n})':partial(resnet_v1, n, 10) for n in (18,50)} | {
    f'resnet_b({n})':partial(resnet_b, n, 10) for n in (18,50)} | {f'preact({n})':partial(preact_resnet, n, 10) for n in (18,50)} | {
    'cifar(20)':partial(cifar_resnet, 20), 'cifar(20), plain':partial(cifar_resnet, 20, residual=False),
    'd2l':partial(d2l_resnet18, 3, 10), 'keras':partial(keras_resnet50, 10, 64),
    **{o:partial(recipe_net, recipe(o), 10) for o in ('imagenette-5ep','imagenette-5ep-blur-pool','imagenette-5ep-large-grid')}}

def answers(net, x, y, precision='fp32'):
    "Scores in evaluation, scores and all gradients in training"
    device = first(net.parameters()).device
    x,y = x.to(device, first(net.parameters()).dtype),y.to(device)
    with in_precision(device, precision):
        with torch.no_grad(): evaluated = net.eval()(x)
        trained = net.train()(x)
    F.cross_entropy(trained.to(x.dtype), y).backward()
    grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return {k:o.detach().double().cpu() for k,o in dict(evaluated=evaluated, trained=trained, gradients=grads).items()}

def fresh(make):
    "A net whose batch norms are not as at the start, where they hide what is wrong in them"
    torch.manual_seed(0)
    net = make()
    for m in net.modules():
        if not isinstance(m, nn.BatchNorm2d): continue
        for o in (m.weight, m.running_var): nn.init.uniform_(o, .5, 1.5)
        for o in (m.bias, m.running_mean): nn.init.uniform_(o, -.3, .3)
    return net

@pytest.fixture(scope='module')
def rows(keep):
    res = []
    yield res
    keep('equality', res, what="distance from fp64 on the CPU, as a share of its length")

@pytest.fixture
def full_fp32():
    "No TF32, whatever was set"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False): yield
    torch.set_float32_matmul_precision(before)

def sped_up(net): return speed_up(net).to(memory_format=torch.channels_last)

@pytest.mark.parametrize('name', nets)
def test_a_net_on_both(name, device, rows, full_fp32, rehearsal):
    """In fp64 it is the same. In fp32 a GPU is as near to that as a CPU is, or at most ten times as far; gradients are further
    off on both, since a ReLU near 0 lets through or not. In 16 bits it is near"""
    if rehearsal and name not in ('fcn','cifar(20)','imagenette-5ep'): pytest.skip('a rehearsal')
    x,y = torch.randn(8,3,64,64, generator=torch.Generator().manual_seed(1)),torch.arange(8)
    exact = answers(fresh(nets[name]).double(), x, y)
    def error(net, *precision): return {k:((o-exact[k]).norm()/exact[k].norm()).item() for k,o in answers(net, x, y, *precision).items()}
    mixed,_ = choose_precision(device)
    errors = dict(gpu_fp64=error(fresh(nets[name]).double().to(device)), cpu=error(fresh(nets[name])), gpu=error(fresh(nets[name]).to(device)), gpu_sped_up=error(sped_up(fresh(nets[name])).to(device)),
                  gpu_mixed=error(sped_up(fresh(nets[name])).to(device), mixed))
    rows += [dict(net=name, on=on, precision=dict(gpu_fp64='fp64', gpu_mixed=mixed).get(on, 'fp32'), **e) for on,e in errors.items()]
    assert max(errors['gpu_fp64'].values())<1e-6
    for on in ('gpu','gpu_sped_up'):
        for k,e in errors[on].items(): assert e<=10*errors['cpu'][k]+(.05 if k=='gradients' else 5e-5), (on, k, e, errors['cpu'][k])
    assert errors['gpu_mixed']['evaluated']<.1

@pytest.mark.parametrize('load', [cached_data, cached_chapter_data])
def test_batches_arrive_as_they_were_made(photos, device, load, rehearsal):
    "However busy the GPU is: a copy that comes too late, or is written over too early, is seen here"
    size = 32 if rehearsal else 128
    dls = load(photos, presize=size, resize=size, bs=16)
    assert dls.train.device.type==device.type
    side = 32 if rehearsal else 2048
    busy = torch.randn(side, side, device=device)
    sums = []
    for _ in range(3):
        for xb,_ in dls.valid:
            for _ in range(20): busy = (busy@busy).clamp(-1, 1)
            sums.append(xb.as_subclass(Tensor).double().sum((1,2,3)))   # asked for after the work, and read at the end
    n = len(dls.valid)
    sums = [o.cpu() for o in sums]
    for i,o in enumerate(sums): assert torch.allclose(o, sums[i%n], rtol=1e-6, atol=1e-6)
    if load is cached_data:
        ds = dls.valid.dataset
        bytes_ = [ds.batch(list(b), np.random.default_rng(0))[0] for b in chunked(range(len(ds)), dls.valid.bs)]
        mean,std = (tensor(o)[:,None,None] for o in imagenet_stats)
        for x,o in zip(bytes_, sums):
            x = x.as_subclass(Tensor)
            if x.dtype==torch.uint8: x = (x/255-mean)/std
            assert torch.allclose(x.double().sum((1,2,3)), o, rtol=1e-3, atol=1.)

def test_an_average_waits_for_nothing(device, rehearsal):
    if rehearsal: pytest.skip('a CPU never waits')
    net = Averaged(resnet_b(18, 10), .99).to(device)
    net.update()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(9): net.update()
    finally: torch.cuda.set_sync_debug_mode('default')
    assert net.seen==10

def test_a_full_memory_says_so(device, rehearsal):
    if rehearsal: pytest.skip('it would take all of the machine')
    with pytest.raises(RuntimeError) as e: torch.empty(2**44, device=device)
    assert "the GPU's memory is too small" in str(no_room(e.value))
