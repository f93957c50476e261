"What makes a step faster changes nothing in its result beyond rounding, and gives way where it cannot be had"
import gc, pickle, subprocess, sys, weakref
from types import SimpleNamespace
import pytest, torch
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from resnet_course import loading, speed
from resnet_course.kit import loops
from resnet_course.kit.files import CourseError
from resnet_course.kit.gpu import TunedKernels
from resnet_course.kit.runs import measured_fit
from resnet_course.kit.timing import Clock, profile_epoch, training_step
from resnet_course.training import CPUMixedPrecision, get_learner
from resnet_course.fcn import get_fcn
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18
from resnet_course.bottleneck import Bottleneck, resnet50
from resnet_course.classics import resnet_b, resnet_v1
from resnet_course.preact import preact_resnet
from resnet_course.ingredients import blur_pool, pool_not_stride, pool_shortcuts, with_activation
from resnet_course.loading import cached_data
from resnet_course.speed import (_ConvAsProduct, _loops, _moments, _nhwc, c_loops, fast_learner, FastBlock, FastConv2d, FastConvLayer, FastNorm,
                                 FusedAdam, slow_down, speed_up, TrimMemory)
from conftest import named_gpu, one_line, tiny_learner

@pytest.fixture(autouse=True)
def small_batches_too(monkeypatch): monkeypatch.setattr(FastNorm, 'least', 0)

needs_cc = pytest.mark.skipif(_loops(torch.float32) is None, reason='no C compiler')
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
    y.backward(torch.randn(y.shape).bfloat16().to(y))   # the same numbers in every precision
    return {'output':y, 'input':x.grad, **{k:p.grad for k,p in net.named_parameters()}, **dict(net.named_buffers())}
def check_same(fast, net, x, eps=1e-8):
    "Output, all gradients and all statistics in training; evaluation to the last bit"
    a,b = with_gradients(fast, x),with_gradients(net, x)
    assert a.keys()==b.keys()
    for k in b:
        assert (a[k] is None)==(b[k] is None)
        if b[k] is not None: assert (a[k]-b[k]).double().norm()<eps*b[k].double().norm().clamp(min=.01), k
    fast.load_state_dict(net.state_dict())
    assert (fast.eval()(x)==net.eval()(x)).all()

# --- batch norm and ReLU ----------------------------------------------------------------------------------------
def norm_act(c, relu): return random_norms(nn.Sequential(nn.BatchNorm2d(c), *[nn.ReLU()]*relu))

def furthest(x, relu=False, dtype=None):
    "How far result, gradients and statistics are from those in double precision: PyTorch's, and ours"
    torch.manual_seed(1)
    x = x.to(dtype or x.dtype)
    net = norm_act(x.shape[1], relu)
    exact = with_gradients(deepcopy(net).double(), x.double())
    def far(net):
        if x.dtype is torch.double: net = net.double()
        res = with_gradients(net, x)
        return {k: ((res[k].double()-o).abs().max()/o.abs().max().clamp(min=1e-30)).item() for k,o in exact.items()}
    return far(deepcopy(net)),far(speed_up(net))

def at(x, where, value):
    x = x.clone()
    x[where] = value
    return x
noise = torch.randn(6,3,11,9, generator=torch.Generator().manual_seed(0))
large = torch.randn(64,3,64,64, generator=torch.Generator().manual_seed(0))
hard = {**{f'scale {s:g}':noise*s for s in (1e-4,1e-2,1e2,1e4,1e16)}, **{f'mean {m:g}':noise+m for m in (-10,1e2,1e3,1e4)},
        'first pixel':at(large, (0,slice(None),0,0), 100), 'last pixel':at(large, (-1,slice(None),-1,-1), -1e4),
        'hardly any deviation':noise*.01+1e4, 'some pixel':at(noise, (3,slice(None),5,2), 1e6), 'half of it':at(noise, slice(0,3), 1e4),
        'one white corner':at(torch.zeros(128,3,32,32), (0,slice(None),0,0), 1),
        'nearly constant':at(large*0+.1, (0,slice(None),0,0), 1),
        'first photo':at(noise, 0, 1e3), 'one channel':at(noise, (slice(None),1), 7), 'large':large}

@needs_cc
@pytest.mark.parametrize('odd', [1., 10., 1e4])
def test_variance_where_the_first_row_of_all_maps_is_another(odd):
    "As the padding makes it in blank pictures: sums of equal numbers round in one direction"
    x = torch.full((4,3,64,32), .1).to(memory_format=torch.channels_last)
    x[:,:,0] = odd
    x[:,:,:,0] = odd
    _,var = _moments(_loops(torch.float), x)
    assert torch.allclose(var, x.double().var((0,2,3), unbiased=False), rtol=2e-6, atol=0)

def test_layers_take_their_input_by_name():
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.Conv2d(8,8,1)))
    fast,x = speed_up(deepcopy(net)),torch.randn(2,3,8,8)
    for training in (True,False):
        net.train(training), fast.train(training)
        for a,b in zip(net, fast):
            y = a(input=x)
            assert type(a) is not type(b) and torch.allclose(y, b(input=x), atol=1e-5)
            x = y.detach()
        x = torch.randn(2,3,8,8)

@needs_cc
@pytest.mark.parametrize('relu', [False,True])
@pytest.mark.parametrize('what', hard)
def test_norm_is_right_where_it_is_hard(what, relu):
    "Within the rounding of one number, which at a mean of 1e4 and a deviation of 1 is .001; bf16 keeps 8 bits"
    _,ours = furthest(hard[what], relu)
    assert max(v for k,v in ours.items() if k!='input' or 'constant' not in what)<2e-6, ours
    _,ours = furthest(hard[what], relu, torch.bfloat16)
    assert ours['output']<.004 and ours['0.running_var']<1e-6 and ours['0.running_mean']<1e-6, ours

@needs_cc
@pytest.mark.parametrize('shape', [(1,3,2,1), (1,1,5,7), (2,5,1,1), (33,2,1,1), (3,129,3,5), (300,7,4,3)])
def test_norm_in_odd_sizes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))+2
    for dtype,eps in ((torch.double,1e-9), (torch.float,1e-4), (torch.bfloat16,.05)):
        for relu in (False,True):
            plain,ours = furthest(x, relu, dtype)
            for k,v in ours.items(): assert v<max(eps, 2*plain[k]), (dtype, k)

@needs_cc
@pytest.mark.parametrize('dtype', [torch.float,torch.bfloat16])
def test_a_constant_channel(dtype):
    "Its variance is 0, not the difference of two large numbers, and its output the bias"
    for value in (0, .1, 1e4, -3e-5):
        net = speed_up(norm_act(3, False))
        bias,before = net[0].bias,net[0].running_var.clone()
        y = net(torch.full((5,3,7,3), value).to(dtype))
        assert (y==bias.to(dtype)[:,None,None]).all() and torch.allclose(net[0].running_var, before*.9)

@needs_cc
def test_bf16_is_rounded_to_the_nearest():
    "Output and gradient are those of fp32, rounded once"
    torch.manual_seed(0)
    x,g = (torch.randn(4,48,6,5).bfloat16() for _ in range(2))
    net = norm_act(48, True)
    def run(dtype):
        xs = x.to(dtype).clone().requires_grad_()
        y = speed_up(deepcopy(net))(xs)
        y.backward(g.to(dtype))
        return y,xs.grad
    for p,q in zip(run(torch.bfloat16), run(torch.float32)): assert (p!=q.bfloat16()).float().mean()<.001

@needs_cc
def test_no_activation_outlives_its_step():
    net,refs = speed_up(ResNet(5, [2,2,1,1])),[]
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    for m in blocks: m.register_forward_hook(lambda m,_,out: refs.append(weakref.ref(out)))
    gc.disable()
    try: net(torch.randn(2,3,64,64)).sum().backward()
    finally: gc.enable()
    assert len(refs)==len(blocks) and not any(r() is not None for r in refs)

@needs_cc
def test_norm_in_any_layout_and_number_of_threads():
    "The same to the last bit"
    x = torch.randn(4,16,9,5)
    net = norm_act(16, True)
    def run(x):
        return {k:o.contiguous() for k,o in with_gradients(speed_up(deepcopy(net)), x).items()}
    expected = run(x)
    others = [run(x.contiguous(memory_format=torch.channels_last)), run(torch.cat([x,x], 3)[...,:5]),
              run(x.permute(0,1,3,2).contiguous().permute(0,1,3,2))]
    try:
        torch.set_num_threads(2)
        others.append(run(x))
    finally: torch.set_num_threads(1)
    for o in others: assert all(torch.equal(o[k], v) for k,v in expected.items())

@needs_cc
def test_norm_keeps_nan():
    "In its channel, and as a ReLU does: its gradient too"
    x = torch.randn(2,2,3,3)
    x[0,0,0,0] = float('nan')
    for dtype in (torch.float,torch.bfloat16):
        a,b = (with_gradients(o, x.to(dtype)) for o in (lambda n: (speed_up(deepcopy(n)),n))(norm_act(2, True)))
        assert a['output'][:,0].isnan().all() and a['output'][:,1].isfinite().all()
        for k in b: assert (a[k].isnan()==b[k].isnan()).all(), k

@needs_cc
def test_norm_gives_way():
    "To the plain one: in evaluation, without statistics or weights, with a cumulative average, for one value"
    x = torch.randn(3,4,5,5)
    odd = [nn.BatchNorm2d(4, **o) for o in (dict(affine=False), dict(track_running_stats=False), dict(momentum=None))]
    for bn in (*odd, nn.BatchNorm2d(4).eval()):
        net = nn.Sequential(bn, nn.ReLU())
        fast = speed_up(deepcopy(net))
        assert torch.equal(fast(x), net(x)) and all(map(torch.equal, fast.buffers(), net.buffers()))
    fast = speed_up(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    with pytest.raises(ValueError, match='more than 1 value'): fast(torch.randn(1,4,1,1))
    with pytest.raises(ValueError, match='4D'): fast(torch.randn(2,4))
    with pytest.raises(RuntimeError, match='4'): fast(torch.randn(2,5,3,3))   # not the memory behind the weights

@needs_cc
def test_a_small_batch_is_left_to_pytorch(monkeypatch):
    "Where the calls cost more than the passes"
    used = []
    apply = speed._NormAct.apply
    monkeypatch.setattr(speed._NormAct, 'apply', lambda *args: used.append(1) or apply(*args))
    monkeypatch.setattr(FastNorm, 'least', 2**12)
    net = speed_up(norm_act(4, True))
    for shape,n in (((8,4,8,15),0), ((8,4,8,16),1)):
        used.clear()
        net(torch.randn(shape))
        assert len(used)==n

def test_without_a_compiler(monkeypatch):
    "Plain PyTorch, with the same result"
    monkeypatch.setenv('CC', 'no-such-compiler')
    assert _loops(torch.float32) is None and 'no-such-compiler' in c_loops() and '\n' not in c_loops()
    net = random_norms(ResNet(5, [1,1,1,1]))
    check_same(speed_up(deepcopy(net)), net, torch.randn(3,3,40,40), 1e-5)

@needs_cc
@pytest.mark.parametrize('cc', ['', 'cc -m64', 'env cc', 'cc  -DSOME="a b"'])
def test_a_compiler_with_arguments(monkeypatch, cc):
    monkeypatch.setenv('CC', cc)
    assert c_loops() is None and _loops(torch.float32) is not None

@pytest.mark.parametrize('cc, why', [('false', 'exit status 1'), ('cc "', 'quotation'), ('cc -no-such-option', 'error'),
                                     ('/', 'ermission')])
def test_why_the_loops_are_off(monkeypatch, cc, why):
    monkeypatch.setenv('CC', cc)
    assert why in c_loops() and '\n' not in c_loops() and cc in c_loops()

@pytest.mark.skipif(shutil.which('gcc') is None, reason='only gcc tells')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.double])
def test_loops_over_channels_become_wide_instructions(monkeypatch, dtype):
    "All that read numbers, in each of their variants; else they take several times as long, and nobody is told"
    run,text,said = subprocess.run,[],[]
    def gcc(args, cwd, **kwargs):
        text.extend((Path(cwd)/'loops.c').read_text().splitlines())
        done = run([*args, '-fopt-info-vec-optimized', '-fopt-info-vec-missed'], cwd=cwd, **kwargs)
        said.extend(re.findall(r'loops\.c:(\d+):\d+: (.*)', done.stderr))
        return done
    monkeypatch.setattr(loops.subprocess, 'run', gcc)
    assert loops._compile.__wrapped__(speed._c_forward+speed._c_backward, dtype, 'gcc')[0] is not None
    reading = {i for i,line in enumerate(text, 1) if re.search(r'CHANNELS.*(get\(|GRADIENT)', line)}
    assert len(reading)==8
    def lines(what): return {int(i) for i,words in said if what in words} & reading
    of_rows = {i for i in reading if 'for (I i' in text[i-1]}   # a loop around it, in the same line
    assert lines('loop vectorized')==reading and lines("couldn't vectorize loop")<=of_rows

# --- convolutions -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('ks, stride, padding, h, w', [(3,1,1,4,4), (3,2,1,8,8), (3,2,1,7,5), (7,2,3,9,6), (2,2,0,6,6),
                                                       (3,1,0,3,3), (5,3,2,10,4), (1,1,0,6,5),
                                                       (1,2,0,6,5), (1,1,1,2,2)])
@pytest.mark.parametrize('whole', [True,False])
def test_convolution_as_a_product(ks, stride, padding, h, w, whole):
    torch.manual_seed(0)
    x,wt = (torch.randn(s, dtype=torch.double).requires_grad_() for s in ((3,2,h,w), (5,2,ks,ks)))
    y,z = _ConvAsProduct.apply(x, wt, stride, padding, whole),F.conv2d(x, wt, stride=stride, padding=padding)
    g = torch.randn_like(z)
    for a,b in zip((y, *torch.autograd.grad(y, (x,wt), g)), (z, *torch.autograd.grad(z, (x,wt), g))):
        assert a.shape==b.shape and (a-b).abs().max()<1e-12

@pytest.fixture(autouse=True)
def as_with_amx(monkeypatch):
    "The most products in bf16, wherever these tests run"
    monkeypatch.setattr(speed, 'matrix_units', lambda device: 'AMX')

def fast_conv(*args, **kwargs): return speed_up(nn.Sequential(nn.Conv2d(*args, **kwargs)))[0]

def test_weights_that_are_computed_are_computed_once_in_a_pass():
    "Spectral norm brings its vectors forward whenever the weight is asked for"
    def normed(conv):
        torch.manual_seed(0)
        return nn.utils.parametrizations.spectral_norm(conv)
    plain = nn.Conv2d(3, 4, 3, bias=False)
    fast,x = normed(fast_conv(3, 4, 3, bias=False)),torch.randn(2, 3, 4, 4)
    fast.parametrizations.weight.original.data.copy_(plain.weight)
    plain = normed(plain)
    fast.load_state_dict(plain.state_dict())
    for _ in range(3): assert torch.equal(fast(x), plain(x))

@pytest.mark.parametrize('n, side', [(3,125), (5,80)])
def test_the_gradient_of_weights_in_pieces(n, side):
    "Of one image each, as its patches are more than half of 4 million; of two, and the last of one"
    torch.manual_seed(0)
    x,w = (torch.randn(o, dtype=torch.double).requires_grad_() for o in ((n,32,side,side), (8,32,3,3)))
    y,z = _ConvAsProduct.apply(_nhwc(x), w, 1, 1, False),F.conv2d(x, w, padding=1)
    g = torch.randn_like(z)
    a,b = (torch.autograd.grad(o, w, g)[0] for o in (y,z))
    assert rel(a, b)<1e-12

@pytest.fixture(params=[True,False], ids=['AVX2','wider'])
def slow_gradients(request, monkeypatch):
    "Is this processor one on which the weights' gradient alone is a product?"
    monkeypatch.setattr(speed, '_has_only_avx2', lambda: request.param)
    return request.param

@pytest.fixture
def products(monkeypatch):
    "A list that grows with each convolution that is made as a product"
    made,apply = [],_ConvAsProduct.apply
    monkeypatch.setattr(_ConvAsProduct, 'apply', lambda *args: made.append(args[0].dtype) or apply(*args))
    return made

@pytest.mark.parametrize('ni, nf, ks, stride, size, changes, yes', [
    (32,64,3,1,8,{},True), (64,64,3,2,20,{},True), (32,64,5,1,9,{},True), (32,64,1,1,8,{},False), (32,48,3,1,8,{},False),
    (16,64,3,1,8,{},False), (32,64,3,1,8,dict(frozen=True),False), (32,64,3,1,8,dict(plain=True),False),
    (32,64,3,1,8,dict(eval=True),False), (32,64,9,1,9,{},False)])
def test_when_a_weights_gradient_is_a_product(products, slow_gradients, ni, nf, ks, stride, size, changes, yes):
    "On maps above 4x4, for wide layers in channels_last whose weights learn; the result is PyTorch's to the last bit"
    torch.manual_seed(0)
    conv = fast_conv(ni, nf, ks, stride, padding=ks//2, bias=False).to(memory_format=torch.channels_last)
    conv.weight.requires_grad_(not changes.get('frozen'))
    conv.train(not changes.get('eval'))
    x = torch.randn(4,ni,size,size)
    if not changes.get('plain'): x = _nhwc(x)
    x.requires_grad_()
    y,plain = conv(x),nn.Conv2d.forward(conv, x)
    assert products==[torch.float32]*(yes and slow_gradients) and torch.equal(y, plain)
    g,inputs = torch.randn_like(y),[o for o in (x,conv.weight) if o.requires_grad]
    for a,b in zip(*(torch.autograd.grad(o, inputs, g) for o in (y,plain))): assert rel(a, b)<1e-5

@pytest.mark.parametrize('size, bf16', [(4,False), (8,False), (4,True)])
def test_a_backward_pass_in_autocast(monkeypatch, size, bf16):
    "Its products are in the format of the forward pass, whatever is set when it comes"
    monkeypatch.setattr(speed, '_has_only_avx2', lambda: True)
    torch.manual_seed(0)
    conv,x = fast_conv(32, 64, 3, padding=1, bias=False),_nhwc(torch.randn(4,32,size,size)).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16): y,plain = conv(x),nn.Conv2d.forward(conv, x)
    g = torch.randn_like(y)
    with torch.autocast('cpu', torch.bfloat16): a,b = (torch.autograd.grad(o, (x,conv.weight), g) for o in (y,plain))
    for p,q in zip(a, b): assert rel(p, q)<(.015 if bf16 else 1e-5)

@pytest.mark.parametrize('whole', [True,False])
@pytest.mark.parametrize('frozen', [True,False])
def test_no_gradient_is_made_for_frozen_weights(whole, frozen):
    x,w = torch.randn(2,4,6,6, requires_grad=True),torch.randn(8,4,3,3, requires_grad=not frozen)
    y = _ConvAsProduct.apply(x, w, 1, 1, whole)
    with torch.profiler.profile() as seen: y.sum().backward()
    assert any('mm' in o.key for o in seen.key_averages())!=frozen

kinds = {'AMX':True, 'AVX-512':True, 'others':True, 'AVX2':False, 'wider than AVX2':False}   # is it about bf16?
@pytest.mark.parametrize('kind', kinds)
def test_when_a_convolution_is_a_product(products, monkeypatch, kind):
    "On maps that are small enough for this kind of processor; it agrees with PyTorch's within rounding, and leaves the rest alone"
    monkeypatch.setattr(speed, 'matrix_units', lambda device: kind)
    monkeypatch.setattr(speed, '_has_only_avx2', lambda: kind=='AVX2')
    torch.manual_seed(0)
    bf16,every = kinds[kind],{*kinds}-{'others'}
    dtype,eps = (torch.bfloat16,.015) if bf16 else (torch.float32,1e-5)
    def autocast(): return torch.autocast('cpu', torch.bfloat16, enabled=bf16)
    for ks,size,stride,where in (
        (3,2,1,every), (7,2,1,every), (3,4,2,every), (1,2,1,every),
        (3,3,1,every-{'wider than AVX2'}), (3,4,1,{'AMX','AVX2'}), (5,4,1,{'AMX','AVX2'}), (3,5,1,{'AMX'}), (3,8,1,{'AMX'}), (3,9,1,{}),
        (3,8,2,every-{'wider than AVX2'}), (3,10,2,{'AMX'}), (3,16,2,{'AMX'}), (3,18,2,{}),
        (1,4,1,every-{'wider than AVX2'}), (1,5,1,{'AMX'}), (1,20,1,{'AMX'}), (1,16,2,{'AMX'}), (1,20,2,{}),
        (9,2,1,{})):   # whose rows would be 81 times the map
        conv = fast_conv(16, 24, ks, stride, padding=ks//2, bias=False)
        x = torch.randn(4, 16, size, size, requires_grad=True)
        products.clear()
        with autocast(): y = conv(x)
        assert products==[dtype]*(kind in where) and y.dtype==dtype, (ks, size, stride)
        g = torch.randn_like(y)
        plain = nn.Conv2d.forward(conv, x)
        assert rel(y.float(), plain)<eps
        a,b = (torch.autograd.grad(o, (x, conv.weight), g.to(o.dtype)) for o in (y, plain))
        for p,q in zip(a, b): assert p.dtype==torch.float32 and rel(p, q)<eps
        products.clear()
        with autocast(): conv.eval()(x)
        assert not products

def told(how): return torch.set_float32_matmul_precision(how)
def told_for_the_cpu(how): torch.backends.mkldnn.matmul.fp32_precision = how

@pytest.mark.parametrize('tell, how, back', [(told,'medium','highest'), (told,'high','highest'), (told_for_the_cpu,'bf16','none')])
def test_fp32_that_may_be_rounded_in_products_is_left_alone(products, tell, how, back):
    "For then a product and a convolution are not the same, on a machine that takes it up"
    if tell is told_for_the_cpu and not hasattr(torch.backends.mkldnn, 'matmul'): pytest.skip('an older PyTorch')
    conv,x = fast_conv(16, 24, 3, padding=1, bias=False),torch.randn(2,16,2,2)
    try:
        tell(how)
        conv(x)
        assert not products
    finally: tell(back)
    conv(x)
    assert products==[torch.float32]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.double])
def test_other_formats_are_left_alone(products, dtype):
    "Numbers and weights that are not fp32, and autocast to fp16"
    conv,x = nn.Conv2d(16, 24, 3, padding=1, bias=False),torch.randn(2,16,2,2)
    fast = speed_up(nn.Sequential(deepcopy(conv)))[0]
    assert torch.equal(fast.to(dtype)(x.to(dtype)), conv.to(dtype)(x.to(dtype))) and not products
    with torch.autocast('cpu', torch.float16): fast.float()(x)
    assert not products

@pytest.mark.parametrize('odd', [dict(bias=True), dict(groups=2), dict(dilation=2), dict(padding='same'),
                                 dict(stride=(2,1)), dict(padding=(1,0)), dict(padding_mode='reflect', padding=1)])
def test_other_convolutions_are_left_alone(odd):
    "To the last bit, in bf16 too; so are a picture without a batch, no picture, and double precision"
    conv = nn.Conv2d(4, 6, 3, **{'bias':False, **odd})
    fast = speed_up(nn.Sequential(deepcopy(conv)))[0]
    with torch.autocast('cpu', torch.bfloat16):
        for x in (torch.randn(2,4,6,6), torch.randn(4,6,6), torch.randn(0,4,6,6)): assert torch.equal(fast(x), conv(x))
        assert torch.equal(fast.double()(x.double()), conv.double()(x.double()))

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
    "State dicts fit both ways, too"
    torch.manual_seed(0)
    net = random_norms(nets[name]()).double()
    fast = speed_up(deepcopy(net))
    x = torch.randn(4,3,65,50).double()
    check_same(fast, net, x)
    assert list(fast.state_dict())==list(net.state_dict())
    other = nets[name]().double()
    other.load_state_dict(fast.state_dict())
    fast.load_state_dict(net.state_dict())
    assert (fast.eval()(x)==net.eval()(x)).all()

def count(net): return [sum(type(m) is t for m in net.modules()) for t in (FastConvLayer, FastNorm, FastConv2d)]
def test_what_is_swapped():
    for make in (resnet18, resnet50, partial(resnet_b, 18), partial(resnet_b, 50), partial(resnet_v1, 50)):
        net = make(10)
        before = [sum(type(m) is t for m in net.modules()) for t in (ConvLayer, nn.BatchNorm2d, nn.Conv2d)]
        assert count(speed_up(net))==before and min(before)>0
        assert sum(isinstance(m, FastBlock) for m in net.modules())==sum(isinstance(m, ResBlock) for m in net.modules())>0

# Nets of somebody's own, in which what follows what is not what it looks like.
class Adds(nn.Sequential):
    "Whose order is not that of its forward"
    def forward(self, x): return self[2](x + self[1](self[0](x)))
class Backwards(nn.Sequential):
    def forward(self, x):
        for m in reversed(self): x = m(x)
        return x
class Twice(nn.Module):
    "Looks at the norm's output before the ReLU, too"
    def __init__(self, seq): super().__init__(); self.seq = seq
    def forward(self, x): return self.seq[1](self.seq[0](x)) + self.seq(x)
class Minus(ResBlock):
    def forward(self, x): return self.branch(x)-self.shortcut(x)
def conv(ni=4, nf=4, **kwargs): return nn.Conv2d(ni, nf, 3, padding=1, bias=False, **kwargs)
def own_layer():
    "A layer whose norm got a `forward` of its own"
    layer = ConvLayer(4, 4)
    layer[1].forward = lambda x: 2*x
    return layer
def one_of(make):
    "The same module in several places"
    m = make()
    return nn.Sequential(conv(), m, m, nn.Sequential(m, nn.Conv2d(4,4,1)))
def shared_act():
    act = nn.ReLU()
    return nn.Sequential(conv(), nn.BatchNorm2d(4), act, conv(), act, nn.BatchNorm2d(4), nn.MaxPool2d(2), act)
def shared_pool():
    pool = nn.AvgPool2d(3, 1, 1)
    return nn.Sequential(pool, conv(), nn.BatchNorm2d(4), pool, nn.ReLU(), conv())
def shared_norm():
    bn = nn.BatchNorm2d(4)
    return nn.Sequential(conv(), bn, nn.ReLU(), conv(), bn, nn.Tanh())
def shared_conv():
    c = conv()
    return nn.Sequential(c, nn.BatchNorm2d(4), nn.ReLU(), c, c)
def with_tail(last):
    block = ResBlock(4, 4)
    block.branch.append(last)
    return nn.Sequential(block)
def branches(): return nn.ModuleDict({'norm':nn.BatchNorm2d(4), 'relu':nn.ReLU()})
class Parallel(nn.Module):
    def __init__(self): super().__init__(); self.ways = branches()
    def forward(self, x): return self.ways['norm'](x) + self.ways['relu'](x)

odd_nets = {'adds before the ReLU':lambda: Adds(conv(), nn.BatchNorm2d(4), nn.ReLU()),
    'runs backwards':lambda: Backwards(nn.BatchNorm2d(4), nn.ReLU(), conv()),
    'looks between':lambda: Twice(norm_act(4, True)),
    'a block that subtracts':lambda: nn.Sequential(Minus(4,4), Minus(4,4)), 'parallel ways':Parallel,
    'a layer twice':lambda: one_of(lambda: ConvLayer(4,4)), 'a block twice':lambda: one_of(lambda: ResBlock(4,4)),
    'an activation for all':shared_act, 'a pool between':shared_pool, 'a norm twice':shared_norm,
    'a convolution twice':shared_conv,
    'ReLU first':lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU()),
    'norm after norm':lambda: nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()),
    'ReLU in place':lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(True), conv(), nn.ReLU(True)),
    'other activations':lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.LeakyReLU(.1), nn.BatchNorm2d(4),
                                              nn.ReLU6()),
    'a layer more':lambda: with_tail(nn.Sequential(nn.Dropout(0.))), 'a convolution more':lambda: with_tail(conv()),
    'attention':lambda: with_tail(SimpleSelfAttention(4)),
    'a forward of its own':lambda: nn.Sequential(own_layer(), conv()),
    'odd convolutions':lambda: nn.Sequential(conv(groups=2), nn.Conv2d(4,4,3), nn.Conv2d(4,4,(3,1),bias=False),
                                             conv(dilation=2), nn.Conv2d(4,4,3,bias=False,padding='same'),
                                             nn.BatchNorm2d(4), nn.GELU()),
    'weight norm':lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4), nn.ReLU()),
    'frozen norms':lambda: nn.Sequential(conv(), nn.BatchNorm2d(4).requires_grad_(False), nn.ReLU(), ConvLayer(4,4)),
    'empty':lambda: nn.Sequential(nn.Sequential(), conv(), nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.ReLU()))}

@pytest.mark.parametrize('name', odd_nets)
def test_a_net_of_another_kind_equals_the_plain_one(name):
    torch.manual_seed(0)
    net = random_norms(odd_nets[name]()).double()
    check_same(speed_up(deepcopy(net)), net, torch.randn(4,4,12,9).double())

def test_who_holds_a_part_sees_no_difference():
    torch.manual_seed(0)
    held = random_norms(ResBlock(4,8,2))
    x = torch.randn(4,4,9,9)
    before = held(x)
    ids = [id(o) for o in held.modules()]
    speed_up(nn.Sequential(held, nn.ReLU()))
    assert rel(held(x), before)<1e-6 and ids==[id(o) for o in held.modules()]

# --- blocks: the last norm, the sum and the ReLU --------------------------------------------------------------------
def a_block(**parts):
    "With other parts than a block is made with"
    block = ResBlock(4, 4)
    for k,o in parts.items(): setattr(block, k, o)
    return nn.Sequential(ConvLayer(4,4), block)
def shares_its_norm():
    block = ResBlock(4, 4)
    block.shortcut = nn.Sequential(conv(), block.last_norm)
    return nn.Sequential(block)
class Wide(nn.Module):
    "A shortcut of one number for each photo"
    def forward(self, x): return x.mean((1,2,3), keepdim=True)
class Double(nn.Module):
    def forward(self, x): return x.double()
blocks = {'as it is':a_block, 'bottleneck':lambda: nn.Sequential(ConvLayer(4,8), Bottleneck(8,8), Bottleneck(8,16,2)),
    'stride':lambda: nn.Sequential(ResBlock(4,8,2)), 'a norm for both ways':shares_its_norm,
    'a shortcut that is broadcast':lambda: a_block(shortcut=Wide()), 'a shortcut in double':lambda: a_block(shortcut=Double()),
    'a branch of one layer':lambda: a_block(branch=nn.Sequential(ConvLayer(4,4,act_cls=None))),
    'no branch':lambda: a_block(branch=nn.Sequential()), 'a branch that is a layer':lambda: a_block(branch=conv()),
    'a branch that ends in a ReLU':lambda: a_block(branch=nn.Sequential(ConvLayer(4,4))),
    'no norm at the end':lambda: a_block(branch=nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())),
    'a norm before the last layer':lambda: a_block(branch=nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), ConvLayer(4,4,act_cls=None))),
    'a norm that is frozen':lambda: a_block(branch=nn.Sequential(ConvLayer(4,4,act_cls=None).requires_grad_(False)))}

@pytest.mark.parametrize('name', blocks)
def test_a_block_equals_the_plain_one(name):
    torch.manual_seed(0)
    net,x = random_norms(blocks[name]()).double(),torch.randn(3,4,9,7).double()
    for o in (x, x[:1].contiguous(memory_format=torch.channels_last), x.transpose(2,3)): check_same(speed_up(deepcopy(net)), deepcopy(net), o)

def joined(monkeypatch):
    "Notes how often a block hands its shortcut to the last norm"
    used,apply = [],speed._NormAct.apply
    monkeypatch.setattr(speed._NormAct, 'apply', lambda *args: used.append(args[3] is not None) or apply(*args))
    return used

@needs_cc
@pytest.mark.parametrize('watch', [None, 'branch', 'branch.1', 'branch.1.1', 'branch.1.0', 'branch.0', 'shortcut', ''])
def test_a_block_that_is_watched(watch, monkeypatch):
    "Where the norm's own output would be seen, the three are apart; what sees anything else sees the same"
    used = joined(monkeypatch)
    torch.manual_seed(0)
    net,x = random_norms(ResBlock(4,4)).double(),torch.randn(3,4,6,6).double()
    def run(net):
        seen = []
        if watch is not None: net.get_submodule(watch).register_forward_hook(lambda m,i,o: seen.append(o.detach().clone()))
        return seen+[with_gradients(net, x)['input']]
    for a,b in zip(run(speed_up(deepcopy(net))), run(net), strict=True): assert rel(a, b)<1e-10
    assert sum(used)==(watch not in ('branch','branch.1','branch.1.1'))

@needs_cc
@pytest.mark.parametrize('what', hard)
def test_a_block_is_right_where_it_is_hard(what):
    "As near to double precision as PyTorch's own, or nearer"
    x = hard[what].float().repeat(1,2,1,1)[:,:4]
    torch.manual_seed(1)
    net = random_norms(nn.Sequential(ResBlock(4,4)))
    net[0].branch = nn.Sequential(ConvLayer(4,4,act_cls=None))
    random_norms(net)
    exact = with_gradients(deepcopy(net).double(), x.double())
    def far(net):
        res = with_gradients(net, x)
        return {k: ((res[k].double()-o).abs().max()/o.abs().max().clamp(min=1e-30)).item() for k,o in exact.items()}
    plain,fast = far(deepcopy(net)),far(speed_up(net))
    for k in plain: assert fast[k]<max(2*plain[k], 1e-5), k

@needs_cc
def test_a_block_in_bf16(monkeypatch):
    "Rounds once where the plain one rounds twice: it is no further from fp32"
    used = joined(monkeypatch)
    torch.manual_seed(0)
    net,x = random_norms(ResBlock(8,8)),torch.randn(8,8,12,12)
    def run(net, enabled):
        x_ = x.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled): y = net(x_.bfloat16() if enabled else x_)
        g, = torch.autograd.grad(y.float().pow(2).mean(), x_)
        return y.detach().float(),g
    exact,plain,fast = run(deepcopy(net), False),run(deepcopy(net), True),run(speed_up(net), True)
    assert any(used)
    for e,p,f in zip(exact, plain, fast): assert rel(f, e)<1.1*rel(p, e)<.02

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('where', ['shortcut', 'both'])
def test_a_block_with_numbers_that_are_none(where, value):
    "What is not a number stays so, forward and back, as in PyTorch's"
    class Spoils(nn.Module):
        def forward(self, x): return x+spoiled
    torch.manual_seed(0)
    net,x,spoiled = random_norms(ResBlock(4,4)),torch.randn(3,4,5,5),torch.zeros(3,4,5,5)
    spoiled[1,2,3,3] = value
    if where=='both': x = x+spoiled
    else: net.shortcut = Spoils()
    a,b = with_gradients(speed_up(deepcopy(net)), x),with_gradients(net, x)
    for k in b: assert torch.allclose(a[k], b[k], 1e-4, 1e-4, equal_nan=True), k

def test_a_block_whose_variance_is_too_large_for_its_format():
    torch.manual_seed(0)
    net,x = a_block(branch=nn.Sequential(ConvLayer(4,4,1,act_cls=None))).double(),torch.randn(3,4,5,5).double()
    nn.init.dirac_(net[1].branch[0][0].weight)
    x[:,0] *= 1e160
    a,b = (o[1](x) for o in (speed_up(deepcopy(net)), net))
    assert torch.allclose(a, b)

def test_a_shortcut_of_another_type():
    torch.manual_seed(0)
    net,x = random_norms(a_block(shortcut=Double())),torch.randn(3,4,5,5)
    a,b = (o(x) for o in (speed_up(deepcopy(net)), net))
    assert a.dtype==b.dtype==torch.double and torch.allclose(a, b, atol=1e-5)

def test_parameters_are_the_same_objects():
    net = resnet18(10)
    before = [*net.parameters(), *net.buffers(), *net.modules()]
    fast = speed_up(net)
    assert all(a is b for a,b in zip(before, [*fast.parameters(), *fast.buffers(), *fast.modules()], strict=True))
    again = pickle.loads(pickle.dumps(deepcopy(fast)))
    x = torch.randn(2,3,64,64)
    assert rel(again(x), fast(x))<1e-6 and speed_up(fast) is fast and count(again)==count(fast)

# --- who looks inside -------------------------------------------------------------------------------------------
def seen_by(hook, net, x):
    "What hooks on every module see: `hook(module, keep)` registers one"
    seen = []
    for name,m in net.named_modules(remove_duplicate=False): hook(m, lambda *args, name=name: seen.append((name,args)))
    net(x).pow(2).mean().backward()
    return seen
def flat(o):
    if isinstance(o, (tuple,list)): return [t for x in o for t in flat(x)]
    return [o] if isinstance(o, Tensor) else []

@pytest.mark.filterwarnings('ignore:Full backward hook')   # at the net's first layer: its input has no gradient
@pytest.mark.parametrize('kind', ['forward', 'before', 'backward', 'before backward'])
@pytest.mark.parametrize('make', [lambda: ResNet(5, [1,1,1,1]), lambda: preact_resnet(18, 5)])
def test_hooks_fire_as_in_the_plain_net(kind, make):
    hooks = {'forward':lambda m, keep: m.register_forward_hook(lambda m,i,o: keep(i,o)),
             'before':lambda m, keep: m.register_forward_pre_hook(lambda m,i: keep(i)),
             'backward':lambda m, keep: m.register_full_backward_hook(lambda m,i,o: keep(i,o)),
             'before backward':lambda m, keep: m.register_full_backward_pre_hook(lambda m,o: keep(o))}
    torch.manual_seed(0)
    net,x = random_norms(make()).double(),torch.randn(2,3,40,40).double()
    fast = speed_up(deepcopy(net))
    a,b = seen_by(hooks[kind], fast, x),seen_by(hooks[kind], net, x)
    assert [o[0] for o in a]==[o[0] for o in b] and len(a)>50
    for (name,p),(_,q) in zip(a, b):
        for t,u in zip(flat(p), flat(q), strict=True): assert rel(t, u)<1e-8, name

def test_global_hooks_fire_too():
    net = speed_up(ConvLayer(4,4))
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda m,*_: seen.append(type(m)))
    try: net(torch.randn(2,4,5,5))
    finally: hook.remove()
    assert seen==[FastConv2d, FastNorm, nn.ReLU, FastConvLayer]

@pytest.mark.parametrize('look', ['grad', 'retain_grad', 'hook', 'requires_grad_', 'detach_'])
def test_the_gradient_at_a_blocks_output(look):
    "Has branch and shortcut of the next block, whichever way one looks at it"
    def looked(net, x):
        seen = []
        def keep(m, _, h):
            if look=='detach_': h.detach_()
            if look in ('detach_','requires_grad_'): h.requires_grad_()
            if look=='retain_grad': h.retain_grad()
            if look=='hook': h.register_hook(lambda g: seen.append(g))
            else: seen.append(h)
        blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
        for m in blocks[1:2] if look in ('detach_','requires_grad_') else blocks: m.register_forward_hook(keep)
        if look=='requires_grad_': net.requires_grad_(False)
        loss = net(x).pow(2).mean()
        if look=='grad': return torch.autograd.grad(loss, seen)
        loss.backward()
        return seen[::-1] if look=='hook' else [h.grad for h in seen]
    torch.manual_seed(0)
    net,x = random_norms(ResNet(5, [2,2,1,1])).double(),torch.randn(2,3,64,64).double()
    a,b = (looked(o, x) for o in (speed_up(deepcopy(net)), net))
    for p,q in zip(a, b, strict=True): assert rel(p, q)<1e-8

def test_gradients_of_gradients():
    torch.manual_seed(0)
    net,x = random_norms(ResNet(5, [1,1,1,1])),torch.randn(2,3,40,40)
    def penalty(net, x, dtype):
        x = x.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype==torch.bfloat16): loss = net(x).float().pow(2).mean()
        g, = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), list(net.parameters()))
    fast = speed_up(deepcopy(net))
    for a,b in zip(penalty(fast.double(), x.double(), None), penalty(net.double(), x.double(), None)):
        assert rel(a, b)<1e-7
    for o in penalty(fast.float(), x, torch.bfloat16): assert o.isfinite().all()

@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.torch.jit')
def test_other_ways_through_a_net():
    "`torch.func` and `torch.jit` see the plain layers"
    torch.manual_seed(0)
    net,x = random_norms(ResNet(5, [1,1,1,1])),torch.randn(2,3,40,40)
    fast = speed_up(deepcopy(net))
    expected = net.eval()(x)
    assert rel(torch.jit.script(fast.eval())(x), expected)<1e-5 and rel(torch.jit.trace(fast, x)(x), expected)<1e-5
    assert count(fast)[1]==0 and count(speed_up(fast))[1]>0   # scripting has made them plain; now again
    net = speed_up(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()))
    buffers = {k:o.clone() for k,o in net.named_buffers()}
    def loss(params, x): return torch.func.functional_call(net, {**params, **deepcopy(buffers)}, (x,)).pow(2).sum()
    x = torch.randn(2,4,6,6)
    params = {k:p.detach() for k,p in net.named_parameters()}
    a = torch.func.grad(loss)(params, x)
    net(x).pow(2).sum().backward()
    for k,p in net.named_parameters(): assert rel(a[k], p.grad)<1e-4, k

def one_norm(): return norm_act(4, True)
def both(change, x):
    "The same is done to a fast and a plain net, and they run: what came out, and the statistics; or the kind of error"
    res = []
    torch.manual_seed(0)
    net = one_norm()
    for m in (speed_up(deepcopy(net)), net):
        try:
            change(m)
            res.append((m(x), m[0].running_mean, m[0].running_var, m[0].num_batches_tracked))
        except Exception as e: res.append(type(e))
    return res
changes = {'no statistics':lambda m: setattr(m[0], 'track_running_stats', False), 'no count':lambda m: setattr(m[0], 'num_batches_tracked', None),
    'no bias':lambda m: setattr(m[0], 'bias', None), 'eps 0':lambda m: setattr(m[0], 'eps', 0.), 'eps below 0':lambda m: setattr(m[0], 'eps', -1.),
    'a short bias':lambda m: setattr(m[0].bias, 'data', torch.zeros(1)), 'a double bias':lambda m: setattr(m[0].bias, 'data', torch.zeros(4).double()),
    'a double variance':lambda m: setattr(m[0], 'running_var', torch.ones(4).double()), 'momentum 0':lambda m: setattr(m[0], 'momentum', 0.),
    'momentum 1':lambda m: setattr(m[0], 'momentum', 1.), 'no weights':lambda m: setattr(m[0], 'affine', False)}

@pytest.mark.parametrize('name', changes)
def test_what_is_changed_later(name):
    a,b = both(changes[name], torch.randn(5,4,6,3))
    if isinstance(b, type): assert a is b
    else:
        for p,q in zip(a, b): assert p is q is None or torch.allclose(p, q, atol=1e-5)

@pytest.mark.parametrize('value', [float('inf'), -float('inf'), 3.3e38, -1e37, 3e35])   # of the last two only the sums do not fit
def test_numbers_near_the_end_of_their_format(value):
    "As PyTorch's, whatever that is"
    same = torch.full((64,4,5,5), value)
    for x in (at(torch.randn(4,4,5,5), (1,2,3,3), value), same, same.bfloat16()):
        for p,q in zip(*both(noop, x)): assert torch.allclose(p, q, 1e-4, 1e-4, equal_nan=True)
    for p,q in zip(*both(lambda m: m.double(), torch.randn(4,4,5,5).double()*1e160)): assert torch.allclose(p, q, equal_nan=True)

def odd_tensors():
    x = torch.randn(3,4,5,6)
    return {'negative view':torch._neg_view(x.contiguous(memory_format=torch.channels_last)), 'expanded':x[:1].expand(3,4,5,6),
            'every second':torch.randn(3,8,5,12)[:,::2,:,::2], 'transposed':x.transpose(2,3), 'photo':TensorImage(x)}
@pytest.mark.parametrize('name', odd_tensors())
def test_tensors_that_lie_oddly_in_memory(name):
    x = odd_tensors()[name]
    for p,q in zip(*both(noop, x)): assert torch.allclose(p, q, atol=1e-5)

def run_apart(code):
    "What a new process prints: a crash of C must not end the tests"
    start = 'import torch; from fastai.vision.all import *; from resnet_course.speed import *; torch.manual_seed(0)\n'
    start += 'FastNorm.least = 0\n'
    res = subprocess.run([sys.executable, '-c', start+code], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-500:]
    return res.stdout.strip()

@pytest.mark.parametrize('code', [
    "with torch.device('meta'): y = f(x)",
    "with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t): y = f(x)\ny.pow(2).sum().backward()",
    "x.untyped_storage().resize_(0); f(x)", "torch.jit.trace(f, x, check_trace=False)",
    "from torch._subclasses.fake_tensor import FakeTensorMode\nwith FakeTensorMode(allow_non_fake_inputs=True): f(x)"])
def test_nothing_that_is_no_memory_is_read(code):
    "PyTorch's own answer, an error or not; never a crash"
    run_apart(f"""
f = speed_up(nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()))
x = torch.randn(16,64,32,32).requires_grad_()
if 'resize' in {code!r}: x = x.detach()
try: exec({code!r})
except Exception as e: print(type(e))
""")

@pytest.mark.parametrize('make', [one_norm, lambda: random_norms(ResBlock(4,4))], ids=['norm','block'])
def test_what_is_kept_for_the_backward_pass_may_lie_elsewhere(make):
    "As with `save_on_cpu`: it comes back in another order"
    torch.manual_seed(0)
    net,x = make(),torch.randn(3,4,5,5)
    def run(net):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous().numpy(), torch.from_numpy):
            return with_gradients(net, x)
    a,b = run(speed_up(deepcopy(net))),with_gradients(net, x)
    for k in b: assert torch.allclose(a[k], b[k], atol=1e-5), k

def test_many_gradients_at_once_and_forward_mode():
    torch.manual_seed(0)
    net,x = one_norm().double(),torch.randn(2,4,3,3).double().requires_grad_()
    fast = speed_up(deepcopy(net))
    jacobian = torch.autograd.functional.jacobian
    for kwargs in (dict(vectorize=True), dict(vectorize=True, strategy='forward-mode')):
        assert torch.allclose(jacobian(fast, x, **kwargs), jacobian(net, x), atol=1e-8)
    a,b = (torch.func.vmap(lambda k: f(x.detach()).sum()*k)(torch.ones(3)) for f in (fast, net))
    assert torch.allclose(a, b)

@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.torch.jit')
def test_compiled_and_traced_in_training():
    torch.manual_seed(0)
    net,x = one_norm(),torch.randn(3,4,5,5)
    fast = speed_up(deepcopy(net))
    expected = net(x)
    assert torch.allclose(torch.compile(fast, backend='eager', fullgraph=True)(x), expected, atol=1e-5)
    from torch.fx.experimental.proxy_tensor import make_fx
    assert torch.allclose(make_fx(fast)(x)(x), expected, atol=1e-5)
    assert torch.allclose(torch.jit.trace(fast, x, check_trace=False)(x), expected, atol=1e-5)
    net = random_norms(nn.Sequential(ResBlock(4,8,2), ResBlock(8,8)))
    fast,expected = speed_up(deepcopy(net)),net(x)
    assert torch.allclose(torch.compile(fast, backend='eager', fullgraph=True)(x), expected, atol=1e-5)
    assert torch.allclose(make_fx(fast)(x)(x), expected, atol=1e-5)

def test_what_is_made_of_a_net_later():
    "Whatever an ingredient changes, before or after makes no difference"
    torch.manual_seed(0)
    net,x = random_norms(ResNet(5, [1,1,2,1])).double(),torch.randn(2,3,64,64).double()
    for change in (partial(with_activation, act=nn.Mish), partial(pool_not_stride, pool=blur_pool), partial(pool_shortcuts, pool=blur_pool)):
        check_same(change(speed_up(deepcopy(net))), change(deepcopy(net)), x)

def test_slow_down_takes_it_back():
    net = resnet18(10)
    kinds = [type(m) for m in net.modules()]
    assert [type(m) for m in slow_down(speed_up(net)).modules()]==kinds
    torch.fx.symbolic_trace(slow_down(speed_up(one_norm())))

@pytest.mark.parametrize('changed', [dict(stride=2), dict(padding=0), dict(padding=(0,)), dict(stride=(0,0)), dict(padding=(-1,-1)),
                                     dict(weight=nn.Parameter(torch.randn(6,4,3,5))), dict(dilation=(2,2))])
def test_a_convolution_that_is_changed_later(changed):
    res = []
    torch.manual_seed(0)
    plain = conv(4, 6)
    for m in (speed_up(nn.Sequential(deepcopy(plain)))[0], plain):
        for k,v in changed.items(): setattr(m, k, v)
        try:
            with torch.autocast('cpu', torch.bfloat16): res.append(m(torch.ones(2,4,6,6)))
        except Exception as e: res.append(type(e))
    a,b = res
    assert a is b or torch.equal(a, b)

@needs_cc
@pytest.mark.parametrize('cc, why', [('cc -Dmoments=other', 'moments'), ('cc -fsyntax-only', 'loops.so')])
def test_a_library_without_the_loops(monkeypatch, cc, why):
    monkeypatch.setenv('CC', cc)
    assert why in c_loops() and speed_up(one_norm())(torch.randn(2,4,3,3)).shape==(2,4,3,3)

@needs_cc
def test_no_place_for_the_compiler(monkeypatch):
    monkeypatch.setattr(loops.tempfile, 'TemporaryDirectory', lambda **kwargs: (_ for _ in ()).throw(OSError('no usable folder')))
    monkeypatch.setenv('CC', 'cc -DA_NEW_ONE')
    assert 'no usable folder' in c_loops() and speed_up(one_norm())(torch.randn(2,4,3,3)).shape==(2,4,3,3)

# --- the optimiser ----------------------------------------------------------------------------------------------
def one_cycle(path, opt_func, epochs=2):
    learn = tiny_learner(path, opt_func=opt_func)
    with learn.no_bar(): learn.fit_one_cycle(epochs, 1e-2, wd=.3)
    return learn
def state(learn): return learn.model.state_dict()

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

class SomeTimes(nn.Module):
    "Whose second layer takes part in some steps only, and whose third in none"
    def __init__(self): super().__init__(); self.layers = nn.ModuleList([nn.Linear(3,3) for _ in range(3)])
    def forward(self, x, both): return self.layers[1](self.layers[0](x)) if both else self.layers[0](x)

@pytest.mark.parametrize('turns', [(1,1,1,0), (0,1,0,0,1), (1,0,0,1,1,0)])
def test_parameters_without_a_gradient_in_some_steps(turns):
    "Count as with a gradient of zero once they had one, as in fastai"
    def run(opt_func):
        torch.manual_seed(0)
        net = SomeTimes()
        opt = opt_func(list(net.parameters()), lr=.05, wd=.1)
        for both in turns:
            net(torch.randn(4,3), both).pow(2).sum().backward()
            opt.step()
            opt.zero_grad()
        return net.state_dict(),[o.get('step') for o in opt.state_dict()['state']]
    (a,steps),(b,expected) = run(FusedAdam),run(Adam)
    assert steps==expected
    for k in b: assert torch.allclose(a[k], b[k], atol=1e-6), k

def layouts():
    "A parameter, and the gradient that it gets in each step"
    g = torch.arange(24.).view(2,3,2,2)
    last = dict(memory_format=torch.channels_last)
    def moved(p): p.data = p.data.to(**last)
    def larger(p): p.data = p.data.double()
    return {'becomes channels_last':(torch.zeros(2,3,2,2), g, moved), 'gradient in another order':(torch.zeros(2,3,2,2).to(**last), g, noop),
            'part of a matrix':(torch.zeros(6,8)[:,:3], torch.ones(6,3), noop), 'transposed':(torch.zeros(3,5).T, torch.ones(5,3), noop),
            'complex':(torch.zeros(3, dtype=torch.cfloat), torch.ones(3, dtype=torch.cfloat), noop),
            'becomes double':(torch.zeros(2,3,2,2), g, larger), 'one number':(torch.zeros(()), torch.ones(()), noop)}
@pytest.mark.parametrize('name', layouts())
def test_weights_that_lie_oddly_in_memory(name):
    "Only they move, and as with fastai's"
    def run(opt_func):
        data,g,change = layouts()[name]
        p = nn.Parameter(data)
        opt = opt_func([p], lr=.1, wd=0.)
        for k in (1.,-2.,3.):
            p.grad = (g*k).to(p.dtype)
            opt.step()
            opt.zero_grad()
            change(p)
        return p.detach(),(data._base if data._base is not None else data)
    for a,b in zip(run(FusedAdam), run(Adam)): assert torch.allclose(a.to(b.dtype), b, atol=1e-6)

def test_state_of_other_weights_is_refused():
    "The C code would write past the end"
    out = run_apart("""
a,b = nn.Linear(2,2),nn.Linear(300,300)
def step(net, n, sd=None):
    opt = FusedAdam([*net.parameters()], lr=.1)
    if sd: opt.load_state_dict(sd)
    net(torch.ones(1,n)).sum().backward(); opt.step()
    return opt
try: step(b, 300, deepcopy(step(a, 2).state_dict()))
except CourseError as e: print(e)
""".replace('CourseError', 'speed.CourseError').replace('a,b =', 'import resnet_course.speed as speed; a,b =', 1))
    assert 'create_opt' in out and '\n' not in out

def test_fused_adam_takes_no_closure():
    with pytest.raises(NotImplementedError): FusedAdam([*nn.Linear(2,2).parameters()], lr=.1).step(lambda: 1)

@pytest.mark.parametrize('order', [torch.contiguous_format, torch.channels_last])
def test_no_gradient_is_copied(order):
    "PyTorch's kernel would copy those of weights in channels_last"
    from torch.profiler import profile
    net = nn.Conv2d(4, 8, 3).to(memory_format=order)
    opt = FusedAdam([*net.parameters()], lr=.1)
    net(torch.randn(2, 4, 8, 8).to(memory_format=order)).sum().backward()
    opt.step()
    with profile() as prof: opt.step()
    done = {o.name for o in prof.events()}
    assert 'aten::_fused_adamw_' in done and 'aten::clone' not in done

def test_either_adam_goes_on_with_another_order_in_memory(drawn):
    "A learner in channels_last takes the state of one without, and the other way round"
    def weights(first_cbs, then_cbs, opt_func):
        learn = tiny_learner(drawn, opt_func=opt_func, cbs=first_cbs)
        with learn.no_bar(): learn.fit(1, 1e-2)
        sd,net = deepcopy(learn.opt.state_dict()),deepcopy(learn.model)
        other = tiny_learner(drawn, opt_func=opt_func, cbs=then_cbs)
        other.model.load_state_dict(net.state_dict())
        other.create_opt()
        other.opt.load_state_dict(sd)
        with other.no_bar(): other.fit(1, 1e-2)
        return state(other)
    for order in (([],ChannelsLast()), (ChannelsLast(),[])):
        a,b = weights(*order, FusedAdam),weights(*order, Adam)
        for k in b: assert torch.allclose(a[k], b[k], atol=1e-4), k

def test_what_is_frozen_later_stays(drawn):
    "fastai's `Adam` goes on decaying it"
    def moved(opt_func):
        learn = tiny_learner(drawn, opt_func=opt_func)
        with learn.no_bar(): learn.fit(1, 1e-2, wd=.3)
        frozen = learn.model[0].requires_grad_(False)
        before = frozen[0].weight.detach().clone()
        with learn.no_bar(): learn.fit(1, 1e-2, wd=.3)
        return (frozen[0].weight-before).abs().max()
    assert moved(FusedAdam)==0 and moved(Adam)>0

def test_a_gradient_that_is_left_over_moves_nothing_frozen():
    "As `GradientAccumulation` leaves one at the end of a fit"
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    p.requires_grad_(False)
    FusedAdam([p], lr=.1, wd=.1).step()
    assert (p==1).all()

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
    named_gpu(monkeypatch)
    learn = fast_learner(fake('cuda'), get_fcn(10))
    kinds = {k for o in learn.cbs for k in type(o).__mro__}
    assert {TunedKernels, MixedPrecision}<=kinds and CPUMixedPrecision not in kinds and learn.precision=='fp16'
    monkeypatch.setattr(speed, '_loops', lambda _: 1/0)
    x = torch.randn(2,3,8,8, device='meta')
    assert speed_up(norm_act(3, True).to('meta'))(x).shape==x.shape

def test_compile_keeps_the_names(monkeypatch):
    called = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self: called.append(self))
    named_gpu(monkeypatch)
    learn = fast_learner(fake('cuda'), get_fcn(10), compile=True)
    assert called==[learn.model] and learn.model.state_dict().keys()==get_fcn(10).state_dict().keys()
    fast_learner(fake('cuda'), get_fcn(10))
    assert len(called)==1
    with pytest.raises(CourseError) as e: fast_learner(fake(), get_fcn(10), compile=True)
    assert one_line(e, 'GPU', 'leave it out')

@pytest.mark.parametrize('kind', ['cpu','cuda','mps'])
def test_batches_for_each_kind_of_device(drawn, monkeypatch, kind):
    "The batches, and the statistics with them"
    there,moved = [],[]
    monkeypatch.setattr(loading, 'default_device', lambda: torch.device(kind))
    monkeypatch.setattr(Normalize, 'from_stats', classmethod(lambda cls, *a, cuda: moved.append(cuda) or cls()))
    monkeypatch.setattr(loading, 'AheadDL', lambda *a, **k: there.append(k['device'].type))
    monkeypatch.setattr(loading, 'DataLoaders', lambda *a, **k: SimpleNamespace())
    cached_data(drawn, presize=24, resize=16, bs=16, cache=Path('cache'))
    assert there==[kind]*2 and moved==[kind!='cpu']

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
