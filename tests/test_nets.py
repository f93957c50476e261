"What ResNet, The bottleneck, Degradation and Pre-activation show of their nets, in full"
import pytest
from fastai.vision.all import *
from fastcore.test import test_close as close, test_eq as eq, test_ne as ne
from resnet_course.kit.arrays import PadCrop
from resnet_course.kit.costs import layer_costs, shapes
from resnet_course.kit.drawing import net_arms, net_tensors
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18, resnet34, resnet_stem
from resnet_course.bottleneck import Bottleneck, resnet50, resnet101, resnet152
from resnet_course.degradation import CifarBlock, PadChannels, cifar_dls, cifar_resnet, degradation_experiment
from resnet_course.classics import BottleneckB, BottleneckV1
from resnet_course.preact import PreActBottleneck, bare_conv, norm_relu, preact_resnet
from resnet_course.kit.files import CourseError
from conftest import norms

def on_meta(make, *args, **kwargs):
    "What `make(...)` makes, without its weights"
    with torch.device('meta'): return make(*args, **kwargs)

def n_params(make, *args, **kwargs): return total_params(on_meta(make, *args, **kwargs))[0]
def strides(convs): return [conv.stride for conv in convs]

# --- ResNet -------------------------------------------------------------------------------------------------------------
def test_stem():
    stem = resnet_stem(3, 32, 32, 64)
    eq(len(stem), 4)
    eq(strides(conv[0] for conv in stem[:3]), [(2,2),(1,1),(1,1)])
    eq(resnet_stem(1, 8)(torch.randn(2,1,28,28)).shape, (2,8,7,7))

def test_what_stems_cost():
    "All of these take 64 px to 64 channels of 16 px; the three 3x3 need three times the arithmetic of the 7x7"
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    stem7 = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), pool)
    costs = []
    for stem in (stem7, resnet_stem(3, 32, 32, 64), nn.Sequential(ResBlock(3, 64, stride=2), pool)):
        eq(stem(torch.randn(1,3,64,64)).shape, (1,64,16,16))
        costs.append(layer_costs(stem, 224)[['params','macs']].sum().tolist())
    eq(costs[:2], [[9_408, 118_013_952], [28_512, 357_654_528]])
    assert costs[2][1] > costs[1][1]

def test_parts_of_a_resnet():
    net = ResNet(10, [2,2,2,2])
    eq([name for name,_ in net.named_children()], ['stem','stage1','stage2','stage3','stage4','head'])
    assert isinstance(net, nn.Sequential) and 'forward' not in vars(ResNet)
    eq([len(stage) for stage in net.stages], [2,2,2,2])
    eq([sum(p.numel() for p in group) for group in net.param_groups()], [11_200_874-5130, 5130])
    eq(net.body(torch.randn(2,3,64,64)).shape, (2,512,2,2))
    eq(len(norms(net)), 22)
    eq(sum(bool((o.weight==0).all()) for o in norms(net)), 8)

@pytest.mark.parametrize('size', [(64,64), (96,96), (131,97), (33,224), (1,1)])
def test_any_size(size):
    net = ResNet(10, [1,1,1,1]).eval()
    with torch.no_grad():
        eq(net.body(torch.randn(2,3,*size)).shape, (2, 512, *(math.ceil(o/32) for o in size)))
        eq(net(torch.randn(2,3,*size)).shape, (2,10))

@pytest.mark.parametrize('change', [dict(n_out=11), dict(layers=[2,2,2,3]), dict(c_in=1)], ids=str)
def test_each_argument_counts(change):
    base = dict(n_out=10, layers=[2,2,2,2])
    ne(n_params(ResNet, **{**base, **change}), n_params(ResNet, **base))

def test_the_block_is_the_one_that_is_passed():
    class MyBlock(ResBlock): pass
    net = on_meta(ResNet, 10, [2,2,2,2], block=MyBlock)
    eq({type(block) for stage in net.stages for block in stage}, {MyBlock})
    eq(n_params(ResNet, 10, [2,2,2,2], c_in=4) - n_params(ResNet, 10, [2,2,2,2]), 32*3*3)
    with torch.no_grad(): eq(ResNet(5, [1,1,1,1], c_in=1)(torch.randn(2,1,28,28)).shape, (2,5))

nets = {18:(resnet18, 11_200_874, 11_708_744, 134), 34:(resnet34, 21_309_034, 21_816_904, 230),
        50:(resnet50, 23_547_754, 25_576_264, 332), 101:(resnet101, 42_539_882, 44_568_392, 638),
        152:(resnet152, 58_183_530, 60_212_040, 944)}
macs = {18:2_053_713_920, 34:3_903_401_984, 50:4_328_824_832, 101:8_041_046_016, 152:11_753_267_200}

@pytest.mark.parametrize('depth', nets)
def test_counts(depth):
    "Parameters at 10 and at 1,000 classes, entries of the state dict, multiply-adds, and the number in the name"
    make,ten,thousand,entries = nets[depth]
    net = on_meta(make)
    eq([n_params(make, 10), total_params(net)[0], len(net.state_dict())], [ten,thousand,entries])
    eq(layer_costs(net, 224).macs.sum(), macs[depth])
    eq(1 + (2 if depth<50 else 3)*sum(len(stage) for stage in net.stages) + 1, depth)
    eq(on_meta(make, 10, c_in=1).stem[0][0].in_channels, 1)

@pytest.mark.parametrize('size,sides', [(128,(32,16,8,4)), (224,(56,28,14,7))], ids=str)
def test_grids(size, sides):
    grids = shapes(ResNet(10, [1,1,1,1]), 3, size, size).out_shape.str[1:]
    eq([grids[f'stage{i}'] for i in range(1,5)], [(w,side,side) for w,side in zip((64,128,256,512), sides)])

def shares(net):
    "Each part's share of the arithmetic, the parameters and the outputs of the convolutions"
    costs = layer_costs(net, 224)
    costs['outputs'] = costs.out_shape.map(math.prod)
    sums = costs.groupby(costs.name.str.split('.').str[0])[['macs','params','outputs']].sum()
    return costs,sums/sums.sum()

def test_where_resnet18_has_what():
    costs,of = shares(on_meta(resnet18))
    close(of.macs['stem'], .174, eps=5e-4)
    assert of.macs[[f'stage{i}' for i in range(1,5)]].between(.20, .23).all()
    assert costs.macs[0]/costs.macs.sum() < .01
    assert of.params['stage4'] > .7 and of.params['stem'] < .003
    assert of.outputs[['stem','stage1']].sum() > .7
    ni,nf = costs.in_shape.str[0],costs.out_shape.str[0]
    same = costs[(costs.kind=='conv3x3') & (ni>=64) & (ni==nf)]
    eq(same.macs.unique().tolist(), [115_605_504])
    stage4 = costs[costs.name.str.startswith('stage4')]
    eq([stage4.params.iloc[0], stage4.params.iloc[-1]], [1_179_648, 2*1_179_648])

def test_resnet18_as_tensors():
    sizes,skips = net_tensors(resnet18(10), 3, 128, 128)
    eq([len(skips), sum(bool(label) for _,_,label in skips)], [8,3])
    eq(sizes[-3:], [(512,4,4), (512,1,1), (10,)])

# --- The bottleneck -----------------------------------------------------------------------------------------------------
def test_bottleneck():
    block = Bottleneck(64, 256)
    eq([tuple(conv[0].weight.shape) for conv in block.branch], [(64,64,1,1), (64,64,3,3), (256,64,1,1)])
    eq([len(conv) for conv in block.branch], [3,3,2])   # the last has no ReLU
    eq({name for name in vars(Bottleneck) if not name.startswith('__')}, {'expansion','conv_branch'})
    block = Bottleneck(256, 512, stride=2)
    eq(strides(conv[0] for conv in block.branch), [(1,1),(2,2),(1,1)])
    eq(block.shortcut.project[0].stride, (1,1))   # the shortcut pools first

def test_what_a_bottleneck_saves():
    rows = []
    for block,channels in ((ResBlock(64, 64), 64), (Bottleneck(256, 256), 256), (ResBlock(256, 256), 256)):
        costs = layer_costs(block, 56, channels)
        rows.append([total_params(block)[0], costs.macs.sum(), costs.out_shape.map(math.prod).sum()])
    params,arithmetic,outputs = zip(*rows)
    eq(params, (73_984, 70_400, 1_180_672))
    eq(arithmetic, (231_211_008, 218_365_952, 3_699_376_128))
    eq(outputs[1]/outputs[0], 3)

def test_where_resnet50_has_what():
    _,of = shares(on_meta(resnet50))
    close(of.macs['stem'], .083, eps=5e-4)
    eq(of.macs.idxmax(), 'stage3')
    early,middle = of.loc[['stem','stage1']].sum(),of.loc[['stage2','stage3']].sum()
    assert early.macs < .25 and middle.macs > .55 and early.outputs > .5
    assert 1.10 < macs[50]/macs[34] < 1.11

def test_resnet50_starts_silent():
    all_norms = norms(resnet50(10))
    eq((len(all_norms), sum(bool((o.weight==0).all()) for o in all_norms)), (55,16))

def test_resnet50_as_tensors():
    "Narrow, narrow, wide; and a shortcut past each three"
    sizes,skips = net_tensors(resnet50(10), 3, 64, 64)
    eq(len(skips), 3+4+6+3)
    channels = [c for c,*_ in sizes]
    for a,b,_ in skips: eq(channels[a:b+1], [channels[b]//4, channels[b]//4, channels[b]])

def test_resnet26():
    def make(n_out): return ResNet(n_out, [2,2,2,2], block=Bottleneck)
    eq([n_params(make, 1000), n_params(make, 10)], [16_014_408, 13_985_898])
    more = layer_costs(on_meta(make, 1000), 224).macs.sum()/macs[18]
    assert 1.2 < more < 1.3 and 1.2 < n_params(make, 10)/n_params(resnet18, 10) < 1.3

# --- Degradation --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('stride,side', [(1,8),(2,4)])
def test_pad_channels(stride, side):
    x = torch.randn(2,16,8,8)
    out = PadChannels(32, stride)(x)
    eq(out.shape, (2,32,side,side))
    eq(out[:,:16], x[..., ::stride, ::stride])
    eq(out[:,16:].unique(), tensor([0.]))
    eq(total_params(PadChannels(32, stride))[0], 0)

def test_an_odd_side_is_rounded_up_as_by_the_convolution():
    eq(PadChannels(32, 2)(torch.randn(2,16,7,7)).shape, CifarBlock(16, 32, 2)(torch.randn(2,16,7,7)).shape)

def test_plain_and_residual_differ_by_the_sum():
    x = torch.randn(2,16,8,8)
    plain = CifarBlock(16, 32, 2)
    residual = CifarBlock(16, 32, 2, PadChannels(32, 2))
    residual.branch = plain.branch
    eq(plain(x), F.relu(plain.branch(x)))
    eq(residual(x), F.relu(plain.branch(x) + PadChannels(32, 2)(x)))
    eq(total_params(plain)[0], total_params(residual)[0])
    eq(plain.last_norm.weight.unique(), tensor([1.]))
    assert net_arms(plain)['shortcut'] is None and net_arms(residual)['shortcut'] is not None

def test_an_empty_shortcut_passes_its_input_on():
    x = torch.randn(2,16,8,8)
    block = CifarBlock(16, 16, 1, nn.Identity())
    out = block(x)
    block.shortcut = nn.Sequential()
    eq(block(x), out)
    block.shortcut = None
    ne(block(x), out)

@pytest.mark.parametrize('depth,params', [(20,269_722), (32,464_154), (44,658_586), (56,853_018), (110,1_727_962)])
def test_cifar_counts(depth, params):
    "A and plain cost the same; B adds two projections"
    a,b,plain = (on_meta(cifar_resnet, depth, **o) for o in ({}, dict(shortcut='B'), dict(residual=False)))
    eq([total_params(net)[0] for net in (a,b,plain)], [params, params+2_752, params])
    costs = [layer_costs(net, 32) for net in (a,b,plain)]
    eq([len(o) for o in costs], [depth, depth+2, depth])
    eq(costs[0].macs.sum(), costs[2].macs.sum())
    eq([len(stage) for stage in (a.stage1,a.stage2,a.stage3)], [(depth-2)//6]*3)

def test_cifar_nets_take_any_size(): eq(cifar_resnet(20, n_out=7)(torch.randn(2,3,33,48)).shape, (2,7))

@pytest.mark.parametrize('kwargs,words', [(dict(depth=21),'6n+2'), (dict(depth=2),'6n+2'), (dict(depth=-4),'6n+2'),
                                          (dict(depth=20, shortcut='C'),"no shortcut 'C'")], ids=str)
def test_no_such_net(kwargs, words):
    with pytest.raises(CourseError) as e: cifar_resnet(**kwargs)
    assert words in str(e.value)

def test_cifar_dls(drawn):
    "Validation pictures are normalised, and where they were; training ones are cropped"
    dls = cifar_dls(drawn, bs=8)
    xb,yb = dls.one_batch()
    eq((xb.shape, yb.shape), ((8,3,32,32), (8,)))
    assert PadCrop in [type(o) for o in dls.after_batch.fs] and dls.n==64
    mean,std = (tensor(o)[:,None,None] for o in cifar_stats)
    back = dls.valid.one_batch()[0].cpu()*std + mean
    assert -1e-4 < back.min() and back.max() < 1+1e-4

def test_the_four_nets_of_the_experiment():
    nets = {name: make(10) for name,make in degradation_experiment.nets.items()}
    eq(list(nets), ['plain20','plain56','residual20','residual56'])
    eq([total_params(net)[0] for net in nets.values()], [269_722,853_018]*2)
    for depth in (20,56):
        assert nets[f'residual{depth}'].stage2[0].shortcut is not None
        assert nets[f'plain{depth}'].stage2[0].shortcut is None

def test_the_optimiser_is_the_papers():
    opt = degradation_experiment.learner['opt_func'](cifar_resnet(20).parameters(), lr=.1)
    eq([opt.hypers[0][o] for o in ('mom','wd')], [.9,1e-4])
    assert l2_reg in opt.cbs   # the decay is part of the gradient

# --- Pre-activation -----------------------------------------------------------------------------------------------------
def test_bare_conv():
    eq(bare_conv(3, 8, 7, stride=2)(torch.randn(2,3,33,20)).shape, (2,8,17,10))
    eq(bare_conv(3, 8).bias, None)
    eq([type(o) for o in norm_relu(8)], [nn.BatchNorm2d, nn.ReLU])

def test_signals_keep_their_size():
    "Norm and ReLU give a mean square of a half, a bare convolution makes 1 of it"
    set_seed(42)
    x = norm_relu(64)(torch.randn(8,64,16,16))
    close(x.pow(2).mean(), .5, eps=.02)
    close(bare_conv(64, 64, 1)(x).pow(2).mean(), 1, eps=.15)

def test_the_3x3_has_the_stride():
    eq(strides(m for m in PreActBottleneck(8, 16, 2).branch if isinstance(m, nn.Conv2d)), [(1,1),(2,2),(1,1)])

def test_what_the_family_differs_in():
    v1,b,d,v2 = (net_arms(make(256, 512, 2)) for make in (BottleneckV1, BottleneckB, Bottleneck, PreActBottleneck))
    def moved(new, old): return {part for part in new if new[part]!=old[part]}
    eq([moved(b, v1), moved(d, b)], [{'branch'},{'shortcut'}])
    eq([v2['after'], v1['after']], [[],['ReLU']])

@pytest.mark.parametrize('depth,ten,thousand', [(18,11_179_850,11_687_720), (34,21_288_010,21_795_880),
                                                (50,23_520_842,25_549_352)])
def test_preact_counts(depth, ten, thousand): eq([n_params(preact_resnet, depth, n) for n in (10,1000)], [ten,thousand])

def test_preact_norms():
    "Three in each block and the last one; stem and projections have none"
    eq(len(norms(on_meta(preact_resnet, 50))), 3*16+1)
    with pytest.raises(CourseError) as e: preact_resnet(20)
    assert '18, 34, 50, 101, 152' in str(e.value)

@pytest.mark.parametrize('size', [(64,64), (67,33), (1,1)], ids=str)
def test_preact_takes_any_size(size):
    with torch.no_grad(): eq(preact_resnet(18, 10, c_in=1).eval()(torch.randn(2,1,*size)).shape, (2,10))
