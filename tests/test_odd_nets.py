"Nets that are not written as the course's are: what looks at them says what is true of them, and leaves them as they were"
import pytest, timm, torch
from contextlib import suppress
from fastai.vision.all import *
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from resnet_course.kit.costs import copied, count_macs, evaluating, layer_costs, shapes
from resnet_course.kit.drawing import net_flow
from resnet_course.kit.timing import profile_epoch, step_seconds
from resnet_course.fcn import get_fcn
from resnet_course.resnet import resnet18
from resnet_course.degradation import cifar_resnet
from resnet_course.ingredients import Averaged, kept
from resnet_course.speed import speed_up
from resnet_course.landscape import filter_direction, fold_norms, plot_surfaces, surface
from resnet_course.interpret import accuracy_by_size, class_maps
from conftest import one_line, randomise_bn, tiny_learner

# --- the zoo ------------------------------------------------------------------------------------------------------
def conv(ni=3, nf=3, **kwargs): return nn.Conv2d(ni, nf, 3, padding=1, **kwargs)
def pair(ni=3, nf=3): return conv(ni, nf), nn.BatchNorm2d(nf)

class Own(nn.Module):
    "Parts, and a function of them and the input"
    def __init__(self, forward, **parts):
        super().__init__()
        self.way = forward
        for k,m in parts.items(): setattr(self, k, m)
    def forward(self, x): return self.way(self, x)
def own(forward, **parts): return Own(forward, **dict(zip('ab', pair())), **parts)

class Changed(nn.Sequential):
    def forward(self, x): return self[2](x + self[1](self[0](x)))
class Doubling(nn.Conv2d):
    def forward(self, x): return 2*super().forward(x)
class Shifted(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x)+1
class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True): return super().train(True)
class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = pair()
    def forward(self, x, norm=None): return self.a(x) if norm is None else self.b(self.a(x))
class Later(nn.Module):
    "Adds what the convolution said to the image before"
    def __init__(self):
        super().__init__()
        self.a,self.b = pair()
        self.before = 0.
    def forward(self, x):
        y = self.a(x)
        res,self.before = self.b(y)+self.before,y
        return res

def shared_pair():
    b = nn.Sequential(*pair(), nn.ReLU())
    return nn.Sequential(conv(), b, b)
def shared_conv():
    a = conv()
    return nn.Sequential(a, nn.BatchNorm2d(3), nn.ReLU(), a, nn.BatchNorm2d(3))
def shared_norm():
    b = nn.BatchNorm2d(3)
    return nn.Sequential(conv(), b, nn.ReLU(), conv(), b)
def tied():
    net = nn.Sequential(*pair(), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.BatchNorm2d(3))
    net[3].weight = net[5].weight = net[0].weight
    return net
def hooked(which, kind):
    net = nn.Sequential(*pair(), nn.ReLU())
    hook = {'forward':lambda m,i,o: o+1, 'forward_pre':lambda m,i: (i[0]*2,)}[kind]
    getattr(net[which], f'register_{kind}_hook')(hook)
    return net
def around_a_hook():
    "A container, which has a hook, hands out what the convolution says"
    net = own(lambda s,x: s.b(s.c(x)), c=nn.Sequential())
    net.c.append(net.a)
    net.c.register_forward_hook(lambda m,i,o: o.abs())
    return net
def changed(f, net=None):
    net = net or nn.Sequential(*pair(), nn.ReLU())
    f(net)
    return net
class Twice(nn.Module):
    def forward(self, w): return 2*w
def forward_of_its_own(m):
    of_class = m.forward
    m.forward = lambda x: of_class(x)+1
def with_momentum(m): return nn.BatchNorm2d(3, momentum=m)

zoo = dict(
    a_pair_twice=shared_pair, a_conv_twice=shared_conv, a_norm_twice=shared_norm, tied_weights=tied,
    a_changed_sequential=lambda: Changed(*pair(), nn.ReLU()),
    conv_looked_at=lambda: own(lambda s,x: s.b(y:=s.a(x)) + y),
    conv_handed_out=lambda: own(lambda s,x: (s.b(y:=s.a(x)), y)),
    out_as_dict=lambda: own(lambda s,x: dict(y=s.b(s.a(x)))),
    weights_read=lambda: own(lambda s,x: s.b(s.a(x))*s.a.weight.norm()),
    weights_used=lambda: own(lambda s,x: s.b(s.a(x)) + F.conv2d(x, s.a.weight, padding=1)),
    averages_read=lambda: own(lambda s,x: s.b(s.a(x)) + s.b.running_mean.sum()),
    norm_sometimes=lambda: own(lambda s,x: s.b(s.a(x)) if x.mean()>0 else s.a(x)),
    norm_by_size=lambda: own(lambda s,x: s.b(s.a(x)) if x.shape[-1]>44 else s.a(x)),
    norm_optional=Optional, kept_for_later=Later,
    by_keyword=lambda: own(lambda s,x: s.b(input=s.a(input=x))),
    conv_in_a_function=lambda: own(lambda s,x: s.b(F.relu(s.a(x)))),
    parts_by_hand=lambda: Own(lambda s,x: s.c[1](s.c[0](x)) + s.c[0](x), c=nn.Sequential(*pair())),
    module_list=lambda: Own(lambda s,x: s.c[1](s.c[0](x)), c=nn.ModuleList(pair())),
    module_dict=lambda: Own(lambda s,x: s.c['n'](s.c['c'](x)), c=nn.ModuleDict(dict(zip('cn', pair())))),
    also_in_a_list=lambda: changed(lambda m: setattr(m, 'all', [m.a,m.b]),
        own(lambda s,x: s.b(s.all[0](s.b(s.a(x)))))),
    also_in_a_list2=lambda: changed(lambda m: setattr(m, 'all', [m.a,m.b]), own(lambda s,x: s.all[1](s.a(x)))),
    no_averages=lambda: nn.Sequential(conv(), nn.BatchNorm2d(3, track_running_stats=False)),
    not_affine=lambda: nn.Sequential(conv(), nn.BatchNorm2d(3, affine=False)),
    cumulative=lambda: nn.Sequential(conv(), with_momentum(None)),
    always_training=lambda: nn.Sequential(conv(), AlwaysTraining(3)),
    frozen=lambda: changed(lambda m: (m[1].eval(), m.requires_grad_(False))),
    grouped=lambda: nn.Sequential(conv(3, 6, groups=3), nn.BatchNorm2d(6)),
    reflecting=lambda: nn.Sequential(conv(padding_mode='reflect'), nn.BatchNorm2d(3)),
    transposed=lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)),
    conv_subclass=lambda: nn.Sequential(Doubling(3, 4, 3), nn.BatchNorm2d(4)),
    norm_subclass=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(4)),
    **{f'{kind}_hook_{i}':partial(hooked, i, kind) for i in (0,1) for kind in ('forward','forward_pre')},
    a_hook_around=around_a_hook,
    weight_norm=lambda: changed(lambda m: parametrizations.weight_norm(m[0])),
    spectral_norm=lambda: changed(lambda m: spectral_norm(m[0])),
    parametrised_norm=lambda: changed(lambda m: parametrize.register_parametrization(m[1], 'weight', Twice())),
    pruned=lambda: changed(lambda m: prune.l1_unstructured(m[0], 'weight', .5)),
    a_forward_of_its_own=lambda: changed(lambda m: forward_of_its_own(m[0])),
    double=lambda: nn.Sequential(*pair()).double(), bf16=lambda: nn.Sequential(*pair()).bfloat16(),
    mixed=lambda: nn.Sequential(conv().double(), Own(lambda s,x: x.float()), nn.BatchNorm2d(3)),
    averaged=lambda: Averaged(nn.Sequential(*pair(), nn.ReLU()), .9),
    sped_up=lambda: speed_up(nn.Sequential(ConvLayer(3,4), ConvLayer(4,4))),
    without_weights=lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)),
    of_one_dimension=lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
    # timm's and the course's
    resnet18=lambda: resnet18(4), fcn=lambda: get_fcn(4), cifar=lambda: cifar_resnet(8),
    averaged18=lambda: Averaged(resnet18(4), .9),
    **{o:partial(timm.create_model, o, num_classes=4) for o in
       ('resnet18d','mobilenetv3_small_050','densenet121','convnext_atto','regnetx_002','efficientnet_lite0')},
    vgg11_bn=partial(timm.create_model, 'vgg11_bn', num_classes=4, mlp_ratio=1/64))   # else half a gigabyte

def lived_in(make):
    "A net of the zoo in train mode, with norms that are not fresh, but for those that were made to evaluate"
    torch.manual_seed(0)
    net = make()
    with suppress(AttributeError): return randomise_bn(net)   # some norms have no weights
    return net

def image(net, n=2, size=40):
    w = first(net.parameters())
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)).to(torch.float32 if w is None else w.dtype)

def everything(net):
    "What a look at a net must leave alone"
    hooks = ('_forward_hooks','_forward_pre_hooks','_backward_hooks')
    return ([(m.training, *(list(vars(m)[h].items()) for h in hooks), {*vars(m)}) for m in net.modules()],
            [(k, id(o), o.detach().float().numpy().tobytes(), o.requires_grad, o.grad is None)
             for k,o in (*net.named_parameters(), *net.named_buffers())])

def flat(out): return list(out.values()) if isinstance(out, dict) else list(out) if isinstance(out, tuple) else [out]

# --- folding ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', zoo)
def test_folded_nets_compute_the_same(name):
    net = lived_in(zoo[name])
    folded = fold_norms(net)
    before = everything(net)
    for size in (40,48) if isinstance(first(net.modules()), nn.Sequential) else (40,):
        with torch.no_grad():
            x = image(net, size=size)
            want = flat(copied(net).eval()(x))
            got = flat(deepcopy(folded)(x))
        for a,b in zip(want, got, strict=True): assert (a-b).abs().max() <= 1e-4*a.abs().max() and a.dtype==b.dtype
    assert everything(net)==before

def norms(net): return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())

@pytest.mark.parametrize('name, left', [('a_pair_twice',0), ('module_list',0), ('module_dict',0), ('frozen',0), ('grouped',0),
    ('reflecting',0), ('double',0), ('averaged',1), ('a_conv_twice',2), ('conv_looked_at',1), ('norm_sometimes',1),
    ('tied_weights',0), ('resnet18d',0), ('averaged18',22)])
def test_norms_that_are_left(name, left):
    "All that can be folded is; of an average, which evaluates, the half that learns is left"
    assert norms(fold_norms(lived_in(zoo[name])))==left

def test_a_part_of_two_nets_is_folded_in_the_copy_only():
    b = nn.Sequential(*pair())
    nets = [randomise_bn(nn.Sequential(b, nn.ReLU())) for _ in range(2)]
    x = image(b)
    want = nets[1].eval()(x)
    fold_norms(nets[0])
    assert torch.equal(nets[1](x), want) and norms(nets[0])==1

# --- costs --------------------------------------------------------------------------------------------------------
elsewhere = 'weights_used'   # it computes outside of its layers

@pytest.mark.parametrize('name', [o for o in zoo if o!='mixed'])
def test_costs_of_any_net(name):
    "The multiply-adds of the layers are all that PyTorch counts, and nothing in the net has changed"
    net = lived_in(zoo[name])
    if len(list(net.children()))>1: list(net.children())[1].eval()   # frozen on purpose
    before = everything(net)
    costs = layer_costs(net, 40)
    x = image(net, 1)
    total = count_macs(net, x)
    assert everything(net)==before and list(costs)==['name','kind','in_shape','out_shape','params','macs']
    assert costs.macs.sum()==total or name==elsewhere
    layers = dict(net.named_modules())
    assert all(n>0 for n in costs.params) and set(costs.name)<=set(layers)
    shapes(net, 3, 40, 40)
    assert everything(net)==before

def test_an_average_costs_what_its_net_does():
    for make in (partial(cifar_resnet, 8), partial(resnet18, 4)):
        net = make()
        a,b = layer_costs(net, 32),layer_costs(Averaged(net, .9), 32)
        assert a.params.sum()>0 and a.drop(columns='name').equals(b.drop(columns='name'))

@pytest.mark.parametrize('size', [np.int64(9), np.uint8(9), torch.tensor(9), (9,9), [np.int32(9)]*2, np.array([9,9]),
                                  torch.tensor([9,9]), torch.Size([9,9])])
def test_sizes_of_any_kind(size):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    assert layer_costs(net, size).equals(layer_costs(net, 9))
    sides = size if is_iter(size) else (size,size)
    assert shapes(net, np.int64(3), *sides).out_shape.tolist()==[(1,4,7,7), (1,4,1,1)]

@pytest.mark.parametrize('size', [9.5, '9', (9,9.), None, (9,None)])
def test_what_is_no_size(size):
    with pytest.raises(Exception) as err: layer_costs(conv(), size)
    assert one_line(err, 'no size of an image')

def test_each_pass_has_its_own_cost():
    a = conv()
    costs = layer_costs(nn.Sequential(a, nn.MaxPool2d(2), a, a), 8)
    assert costs.name.tolist()==['0']*3 and costs.macs.tolist()==[81*64, 81*16, 81*16] and set(costs.params)=={84}

def test_kinds_of_layers():
    net = nn.Sequential(nn.Conv2d(3, 4, (1,3)), nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.Flatten(2),
                        nn.Conv1d(6, 8, 3, groups=2), nn.Unflatten(2, (-1,1,2)), nn.Conv3d(8, 2, 1), nn.Linear(2, 5))
    costs = layer_costs(net, (4,4))
    assert costs.kind.tolist()==['conv1x3','transposed conv2x2','conv3','conv1x1x1','linear']
    assert costs.macs.tolist()==[4*2*36, 4*6*4*8//2, 3*6*8*30//2, 2*8*30, 5*2*2*15]
    assert costs.macs.sum()==count_macs(net, torch.zeros(1,3,4,4))

def test_a_net_without_layers_costs_nothing():
    costs = layer_costs(nn.ReLU(), 8)
    assert len(costs)==0 and costs.macs.sum()==0 and 'params' in costs

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('device', ['cpu','meta'])
def test_number_formats_and_devices(dtype, device):
    net = cifar_resnet(8).to(device, dtype)
    assert layer_costs(net, 32).equals(layer_costs(cifar_resnet(8), 32))

lazy = dict(conv=lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), linear=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
            norm=lambda: nn.Sequential(conv(), nn.LazyBatchNorm2d()), norm_without_weights=lambda: nn.LazyBatchNorm2d(affine=False))
@pytest.mark.parametrize('name', lazy)
def test_lazy_layers(name):
    "No look makes their weights, and with them random numbers: it says what to do"
    net = lazy[name]()
    x,y = torch.zeros(2,3,8,8),torch.zeros(2).long()
    looks = (lambda: layer_costs(net, 8), lambda: count_macs(net, x), lambda: shapes(net, 3, 8, 8), lambda: class_maps(net, x),
             lambda: surface(net, x, y, Path('s.json')))
    for look in looks:
        with pytest.raises(Exception) as err: look()
        assert one_line(err, 'lazy layers', 'pass one through it')
    net(x)
    assert count_macs(net, x)>=0

def test_each_part_keeps_its_mode_after_an_error():
    net = nn.Sequential(*pair(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5,2))
    net[1].eval()
    before = everything(net)
    for look in (lambda: layer_costs(net, 8), lambda: shapes(net, 3, 8, 8), lambda: count_macs(net, torch.zeros(1,3,8,8)),
                 lambda: class_maps(net, torch.zeros(1,3,8,8)), lambda: step_seconds(net, torch.zeros(2,3,8,8))):
        with pytest.raises(RuntimeError): look()
        assert everything(net)[0]==before[0]

def test_no_hook_is_left_where_one_is_refused():
    "TorchScript takes none"
    net = nn.Sequential(conv(), torch.jit.script(nn.ReLU()))
    with pytest.raises(RuntimeError): shapes(net, 3, 8, 8)
    assert not net[0]._forward_hooks and len(layer_costs(net, 8))==1

class Merged(nn.Linear):
    "As LoRA does it: merged when it evaluates, apart when it trains"
    merged = False
    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

def test_a_part_that_does_more_than_change_its_mode():
    net = nn.Sequential(nn.Flatten(), Merged(48, 2))
    with evaluating(net): assert net[1].merged
    assert not net[1].merged

def test_a_compiled_net():
    "Nothing is compiled for a look, and hooks see every layer"
    net = nn.Sequential(*pair(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,2))
    want,maps = layer_costs(net, 8),class_maps(net, image(net))
    for o in (torch.compile(net), changed(lambda m: m.compile(), deepcopy(net))):
        assert layer_costs(o, 8).macs.tolist()==want.macs.tolist() and torch.equal(class_maps(o, image(net)), maps)

def test_shapes_follow_the_net():
    "Not the order of its parts: parts that are used twice, and a forward of its own"
    a = conv()
    assert shapes(nn.Sequential(a, nn.MaxPool2d(2), a), 3, 8, 8).out_shape.tolist()==[(1,3,8,8), (1,3,4,4), (1,3,4,4)]
    net = Own(lambda s,x: s.b(s.a(x)[:,:1]), b=nn.Conv2d(1, 5, 3), a=conv())
    assert shapes(net, 3, 8, 8).out_shape.to_dict()=={'a':(1,3,8,8), 'b':(1,5,6,6)}
    net = nn.Sequential(zoo['conv_handed_out'](), Own(lambda s,x: dict(y=x[0], n=2)))
    assert shapes(net, 3, 8, 8).out_shape.tolist()==[[(1,3,8,8)]*2, {'y':(1,3,8,8), 'n':()}]

# --- timing -------------------------------------------------------------------------------------------------------
def test_a_measured_step_is_no_training_step():
    net = nn.Sequential(*pair(), nn.Dropout(), nn.Flatten())
    net[1].eval()
    net[0].bias.grad = torch.ones(3)
    net[0].weight.requires_grad_(False)
    x = image(net).requires_grad_()
    before = everything(net)
    step_seconds(net, x)
    assert everything(net)==before
    step_seconds(net.train(), x)
    assert everything(net)[1]==before[1]
    assert x.grad is None and torch.equal(net[0].bias.grad, torch.ones(3))
    for m in (nn.ReLU(), nn.Sequential(*pair()).requires_grad_(False)): step_seconds(m, torch.randn(2,3,8,8))

def test_what_a_loader_was_given_is_there_again(drawn):
    learn = tiny_learner(drawn)
    dl = learn.dls.train
    mine = dl.create_batch = dl.create_batch
    profile_epoch(learn, 0.)
    assert vars(dl)['create_batch'] is mine and 'create_item' not in vars(dl)

# --- drawings -----------------------------------------------------------------------------------------------------
def two(f): return Own(f, a=conv(), b=conv(), c=nn.Conv2d(3, 3, 1))
def inplace(s, x):
    y = s.b(s.a(x))
    y += s.c(x)
    return y
@pytest.mark.parametrize('forward', [lambda s,x: s.b(s.a(x))+s.c(x), lambda s,x: s.c(x)+s.b(s.a(x)), inplace,
    lambda s,x: torch.add(s.b(s.a(x)), s.c(x)), lambda s,x: s.b(s.a(x)).add_(s.c(x)), lambda s,x: (s.c(x)+1)+s.b(s.a(x))*2+.5,
    lambda s,x: s.b(s.a(x)).add(s.c(x)+s.c.bias.sum())])
def test_a_sum_is_a_shortcut_however_it_is_written(forward):
    assert net_flow(two(forward))==(['3x3\n3→3']*2, [(0,1,'1x1 3→3')])

def test_what_is_no_shortcut():
    "A number, a weight, the same thing twice, another input"
    for f in (lambda s,x: s.a(x)+1, lambda s,x: s.a(x)+s.c.bias[:,None,None], lambda s,x: (y:=s.a(x))+y):
        assert net_flow(two(f))==(['3x3\n3→3'], [])
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv()
        def forward(self, x, z): return self.a(x)+z
    assert net_flow(Two())==(['3x3\n3→3'], [])

def test_shapes_of_kernels_and_steps():
    net = nn.Sequential(nn.Conv2d(3, 4, (1,7), (2,1)), nn.Conv2d(4, 4, 3, 2))
    assert net_flow(net)[0]==['1x7\n3→4\nstride 2x1', '3x3\n4→4\nstride 2']

def test_a_drawing_leaves_the_net_alone():
    net = Later()
    before = everything(net)
    net_flow(net)
    assert everything(net)==before and net.before==0
    with pytest.raises(Exception) as err: net_flow(zoo['norm_by_size']())
    assert one_line(err, 'torch.fx cannot follow Own', 'draw_flow')

# --- surfaces -----------------------------------------------------------------------------------------------------
def surf(net, name='s.json', **kwargs):
    "Three losses along a line"
    x = image(net, 8, 16)
    return surface(net, x, torch.arange(8)%4, Path(name), (-1,0,1), bf16=False, **kwargs)['surface']['losses'][0]

def averaged_net():
    "Its average is another net than that which learns"
    torch.manual_seed(1)
    net = Averaged(randomise_bn(get_fcn(4, widths=(4,8))), .9)
    for p in net.net.parameters(): p.data.mul_(-1.5)
    return randomise_bn(net)

@pytest.mark.parametrize('training', [True, False])
def test_the_surface_of_an_average(training):
    "Is that of the weights that evaluation uses"
    net = averaged_net().train(training)
    before = everything(net)
    losses = surf(net)
    plain = get_fcn(4, widths=(4,8))
    plain.load_state_dict(net.average.state_dict())
    assert losses==surf(plain, 't.json') and len(set(losses))==3 and everything(net)==before
    with torch.no_grad(): want = F.cross_entropy(net.eval()(image(net, 8, 16)), torch.arange(8)%4).item()
    assert np.isclose(losses[1], want, rtol=1e-4)

def test_a_kept_net_is_ordinary():
    net = averaged_net()
    a,x = kept(net),image(net)
    assert torch.equal(a.eval()(x), net.eval()(x)) and kept(a) is a
    assert [k for k,_ in a.named_parameters()]==[k for k,_ in net.net.named_parameters()]
    with torch.no_grad(): next(a.parameters()).zero_()
    assert next(net.average.buffers()).abs().sum()>0

def held(net):
    "Weights as buffers, and the parameters are of a net that evaluation does not ask"
    res = Own(lambda s,x: (s.a if s.training else s.b)(x), a=net, b=deepcopy(net))
    for m in res.b.modules():
        for k in list(m._parameters):
            p = m._parameters.pop(k)
            m.register_buffer(k, p if p is None else p.detach())
    return res

def test_a_flat_surface_is_refused():
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    for net in (held(get_fcn(4, widths=(4,))), nn.Sequential(flat, nn.ZeroPad1d((0,1)))):
        with pytest.raises(Exception) as err: surf(net)
        assert one_line(err, 'would be flat', type(net).__name__) and not Path('s.json').exists()

heads = lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,4))
@pytest.mark.parametrize('name', ['a_pair_twice','a_conv_twice','tied_weights','a_changed_sequential','frozen','weight_norm',
    'spectral_norm','pruned','double','bf16','a_forward_of_its_own','forward_hook_0','norm_sometimes','kept_for_later'])
def test_surfaces_of_odd_nets(name):
    "Each point by hand: each parameter moves once"
    net = nn.Sequential(lived_in(zoo[name]), *heads())
    if name in ('double','bf16'): net.to(first(net.parameters()).dtype)
    losses,x = surf(net),image(net, 8, 16).float()
    net = copied(net).float().eval()
    direction = filter_direction(net, 0)
    assert len(direction)==len({*net.parameters()})
    for t,loss in zip((-1,0,1), losses):
        at = copied(net)
        with torch.no_grad():
            for p,d in zip(at.parameters(), direction): p += t*d
            at = at if name!='kept_for_later' else copied(at)
            assert np.isclose(F.cross_entropy(at(x), torch.arange(8)%4).item(), loss, rtol=1e-3)

def drawn_surface(losses): return dict(model='m', surface=dict(losses=losses, xs=[-1,0,1], ys=[0,1]))

def test_plots_of_odd_losses():
    "A net that is perfect somewhere and diverges elsewhere can be drawn, and what is not yet there is said"
    fig = plot_surfaces([drawn_surface([[0.,1.,np.nan], [np.inf,2.,100.]])], top=10)
    fig.canvas.draw()
    assert fig.axes[0].collections[0].zmax==10
    plot_surfaces([drawn_surface([[20.]*3]*2)]*3, top=10).canvas.draw()   # all above
    with pytest.raises(Exception) as err: plot_surfaces([drawn_surface([[0.,1.,2.], [3.,None,None]])])
    assert one_line(err, 'm is not complete', '`surface`, called again')

def test_directions_of_any_number_format():
    w = nn.ParameterList([torch.randn(4,3,2,2), torch.randn(4,3).double(), torch.randn(2,3,dtype=torch.complex64), torch.zeros(2,2)])
    w.append(nn.Parameter(torch.ones(2,2).byte(), requires_grad=False))
    for p,d in zip(w, filter_direction(w, 0)):
        assert d.dtype==p.dtype and d.shape==p.shape
        if p.dtype==torch.uint8: assert not d.any()
        else: assert torch.allclose(d.flatten(1).abs().pow(2).sum(1), p.flatten(1).abs().pow(2).sum(1))
    assert filter_direction(w, 0)[2].imag.abs().min()>0

# --- class maps ---------------------------------------------------------------------------------------------------
def repeated():
    b = ConvLayer(3, 3)
    return nn.Sequential(ConvLayer(3, 3), b, b, *heads())
def squeezed():
    "Squeeze and excitation, with the same pooling as the head"
    pool = nn.AdaptiveAvgPool2d((1,1))
    return Own(lambda s,x: s.fc(s.pool(x*s.gate(s.pool(x:=s.conv(x)).flatten(1))[...,None,None].sigmoid()).flatten(1)),
               pool=pool, conv=conv(), gate=nn.Linear(3,3), fc=nn.Linear(3,4))
mapped = dict(repeated=repeated, squeezed=squeezed,
    by_keyword=lambda: Own(lambda s,x: s.fc(input=s.pool(input=x).flatten(1)), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(3,4)),
    parts_in_another_order=lambda: Own(lambda s,x: s.fc(s.drop(s.pool(s.body(x)).flatten(1))),
        fc=nn.Linear(3,4), pool=nn.AdaptiveAvgPool2d(1), body=conv(), drop=nn.Dropout()),
    torchvision=lambda: models.resnet18(num_classes=4), average=averaged_net, frozen=lambda: resnet18(4).requires_grad_(False),
    bf16=lambda: cifar_resnet(8).bfloat16(), bf16_out_in_fp32=lambda: Own(lambda s,x: s.m(x).float(), m=cifar_resnet(8).bfloat16()),
    double=lambda: cifar_resnet(8).double(), sped_up=lambda: speed_up(resnet18(4)),
    without_bias=lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,4,bias=False)),
    changed_after_relu=lambda: changed(lambda m: m[0].register_forward_hook(lambda m,i,o: o+1), repeated()))

@pytest.mark.parametrize('mode', [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize('name', mapped)
def test_maps_of_odd_nets_add_up_to_the_score(name, mode):
    net = lived_in(mapped[name])
    first(o for o in net.modules() if not list(o.children())).eval()
    x = image(net, 2, 64)
    before = everything(net)
    with mode(): maps = class_maps(net, x)
    assert everything(net)==before and not maps.requires_grad
    bias = [m for m in net.modules() if isinstance(m, nn.Linear)][-1].bias if name!='squeezed' else net.fc.bias
    if name=='parts_in_another_order': bias = net.fc.bias
    if name=='average': bias = net.average[-1].bias
    with torch.no_grad(): score = net.eval()(x).float()
    total = maps.float().mean((2,3)) + (0 if bias is None else bias.float())
    assert (total-score).abs().max() <= (.03 if 'bf16' in name else 1e-4)*score.abs().max()

refused = dict(scaled=lambda: Own(lambda s,x: 2*s.m(x), m=repeated()), softmax=lambda: nn.Sequential(*repeated(), nn.Softmax(1)),
    between=lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Tanh(), nn.Linear(3,4)),
    head_twice=lambda: Own(lambda s,x: s.fc(s.fc(s.pool(x).flatten(1))), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(3,3)),
    a_hook=lambda: changed(lambda m: m.register_forward_hook(lambda m,i,o: o+1), repeated()),
    as_dict=lambda: Own(lambda s,x: dict(y=s.m(x)), m=repeated()), no_layers=nn.ReLU)
@pytest.mark.parametrize('name', refused)
def test_heads_that_have_no_maps(name):
    net = lived_in(refused[name])
    before = everything(net)
    with pytest.raises(Exception) as err: class_maps(net, torch.randn(2,3,16,16))
    assert one_line(err, 'it must end in AdaptiveAvgPool2d(1), Flatten, Linear, with nothing else') and everything(net)==before

@pytest.mark.parametrize('size', [24.5, 0, -1, '24', None])
def test_sizes_that_are_none(size, drawn):
    "It is said before the first picture"
    learn = tiny_learner(drawn)
    with pytest.raises(Exception) as err: accuracy_by_size(learn, [24,size], ())
    assert one_line(err, f'{size} is no size')

def test_sizes_from_numpy(drawn):
    assert accuracy_by_size(tiny_learner(drawn), np.array([16,24])).index.tolist()==[16,24]
