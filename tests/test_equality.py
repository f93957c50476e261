"The course's nets compute what timm's, torchvision's and fastai's do, cost as much, and exchange weights with timm's"
import pytest, sys, timm, torch, torchvision
from copy import deepcopy
from fastai.vision.all import *
from safetensors.torch import load_file, save_file
from resnet_course.kit.costs import layer_costs
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18, resnet34, resnet_stem
from resnet_course.bottleneck import Bottleneck, resnet101, resnet152, resnet50
from resnet_course.degradation import CifarBlock, PadChannels, cifar_resnet
from resnet_course.classics import (BasicBlock, BottleneckB, BottleneckV1, copy_weights, from_timm, plain_resnet,
                                    plain_stem, resnet_b, resnet_layers, resnet_v1, to_timm)
from conftest import norms, one_line, randomise_bn

nets = {18:resnet18, 34:resnet34, 50:resnet50, 101:resnet101, 152:resnet152}
def timm_net(depth, n_out=10): return timm.create_model(f'resnet{depth}d', num_classes=n_out, pretrained=False)
def tv_net(depth, n_out=10): return getattr(torchvision.models, f'resnet{depth}')(num_classes=n_out)

def silent(model): return [bool((m.weight==0).all()) for m in norms(model)]

def same(a, b): return all(torch.allclose(o, p, rtol=1e-5, atol=1e-5) for o,p in zip(a, b, strict=True))

def differences(net, ref, prepare=randomise_bn, even=(128,128), odd=(131,97), train=(64,64)):
    "In which of three forward passes `net`, with the weights of `ref`, computes something else; or it starts otherwise"
    found = set() if silent(net)==silent(ref) else {'fresh'}
    copy_weights(net, prepare(ref))
    for name,size in dict(even=even, odd=odd, train=train).items():
        x = torch.randn(4 if name=='train' else 2, 3, *size)
        for m in (net,ref): m.train(name=='train')
        try: alike = same([net(x), *net.buffers()], [ref(x), *ref.buffers()])
        except RuntimeError: alike = False   # shapes that do not fit
        if not alike: found.add(name)
    return found

def small(depth): return dict(even=(64,64), odd=(65,49), train=(40,40)) if depth>50 else {}   # the deep ones are slow

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad(): yield

@pytest.mark.parametrize('depth', nets)
def test_equals_timm(depth): assert differences(nets[depth](10), timm_net(depth), **small(depth))==set()

@pytest.mark.parametrize('depth', nets)
def test_equals_torchvision(depth): assert differences(resnet_b(depth, 10), tv_net(depth), **small(depth))==set()

def strides_first(model):
    "torchvision's net with the strides where they were in 2015"
    for m in model.modules():
        if hasattr(m, 'conv3') and m.conv2.stride==(2,2): m.conv1.stride,m.conv2.stride = (2,2),(1,1)
    return model

@pytest.mark.parametrize('depth', [50,101,152])
def test_v1_equals_torchvision_with_its_strides_moved(depth):
    assert differences(resnet_v1(depth, 10), strides_first(tv_net(depth)), **small(depth))==set()

@pytest.mark.parametrize('depth', [18,34])
def test_v1_is_b_without_bottlenecks(depth): assert differences(resnet_v1(depth, 10), tv_net(depth))==set()

def test_v1_is_not_b():
    assert differences(resnet_v1(50, 10), tv_net(50), **small(101))=={'even','odd','train'}
    assert differences(resnet_b(50, 10), strides_first(tv_net(50)), **small(101))=={'even','odd','train'}

def test_equals_fastai(): assert differences(resnet18(10), xresnet18(n_out=10))==set()

# --- the same comparison notices wrong blocks -------------------------------------------------------------------
def with_norms(**kwargs):
    "A `ResBlock` whose batch norms have other settings"
    class Block(ResBlock):
        def __init__(self, ni, nf, stride=1):
            super().__init__(ni, nf, stride)
            for m in norms(self): vars(m).update(kwargs)
    return Block
class PoolAfter(ResBlock):
    def forward(self, x): return F.relu(self.branch(x) + nn.Sequential(*self.shortcut[::-1])(x))
class PoolFloor(ResBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        if stride>1: self.shortcut.pool = nn.AvgPool2d(stride)
class Strided(ResBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        if stride>1: self.shortcut.pool = nn.MaxPool2d(1, stride)
class ReluInBranch(ResBlock):
    def forward(self, x): return F.relu(F.relu(self.branch(x)) + self.shortcut(x))
class NoRelu(ResBlock):
    def forward(self, x): return self.branch(x) + self.shortcut(x)
class NoBranch(ResBlock):
    def forward(self, x): return F.relu(0*self.branch(x) + self.shortcut(x))
class NoShortcut(ResBlock):
    def forward(self, x): return F.relu(self.branch(x))
class GammaOne(ResBlock):
    @staticmethod
    def conv_branch(ni, nf, stride):
        return nn.Sequential(ConvLayer(ni, nf, stride=stride), ConvLayer(nf, nf, act_cls=None))
class StrideFirst(Bottleneck):
    @staticmethod
    def conv_branch(ni, nf, stride):
        return nn.Sequential(ConvLayer(ni, nf//4, 1, stride=stride), ConvLayer(nf//4, nf//4),
            ConvLayer(nf//4, nf, 1, act_cls=None, norm_type=NormType.BatchZero))

everywhere = {'even','odd','train'}
mutants = {'pool after the 1x1':(PoolAfter, {'train'}), 'ReLU before the sum':(ReluInBranch, everywhere),
    'stride in the wrong convolution':(StrideFirst, everywhere), 'eps':(with_norms(eps=1e-3), everywhere),
    'momentum':(with_norms(momentum=.01), {'train'}), 'ceil_mode':(PoolFloor, {'odd'}),
    'shortcut dropped':(NoShortcut, everywhere), 'gamma not zero':(GammaOne, {'fresh'}),
    'no pool':(Strided, everywhere), 'no ReLU':(NoRelu, everywhere), 'branch dropped':(NoBranch, everywhere)}

@pytest.mark.parametrize('name', mutants)
def test_a_wrong_block_is_noticed(name):
    "Some are seen by one pass alone"
    block,where = mutants[name]
    deep = block.expansion==4
    assert differences(ResNet(10, [3,4,6,3] if deep else [2,2,2,2], block), timm_net(50 if deep else 18))==where

def test_fresh_batch_norms_would_hide_the_branch():
    "Why `randomise_bn`: with gamma 0 not even a block without its branch is noticed in eval mode"
    assert 'even' not in differences(ResNet(10, [2,2,2,2], NoBranch), timm_net(18), prepare=noop)

# --- copying ----------------------------------------------------------------------------------------------------
def test_copy_weights_in_another_dtype_and_with_gradients():
    src,dst = randomise_bn(resnet18(10)),resnet18(10).half()
    norms(src)[0].num_batches_tracked.fill_(7)
    src_before = deepcopy(src.state_dict())
    with torch.enable_grad(): assert copy_weights(dst, src) is dst
    for (k,a),b in zip(dst.state_dict().items(), src.state_dict().values(), strict=True):
        assert torch.equal(a, b.to(a.dtype)), k
        assert a.dtype==(torch.int64 if k.endswith('tracked') else torch.float16), k
    assert all(p.requires_grad and p.grad_fn is None for p in dst.parameters())
    for p in dst.parameters(): p.zero_()
    assert all(torch.equal(o, src_before[k]) for k,o in src.state_dict().items())   # they share no memory

def test_copy_weights_linear_for_1x1():
    linear,conv = nn.Linear(5, 3),nn.Conv2d(5, 3, 1)
    assert torch.equal(copy_weights(deepcopy(linear), conv).weight, conv.weight[...,0,0])
    assert torch.equal(copy_weights(deepcopy(conv), linear).weight[...,0,0], linear.weight)
    copy_weights(deepcopy(conv).to(memory_format=torch.channels_last), conv)

def conv_norm(nf=4, ks=1): return nn.Sequential(nn.Conv2d(3, nf, ks), nn.BatchNorm2d(nf))
def headed(n): return nn.Sequential(conv_norm(), nn.Linear(2, n))
@pytest.mark.parametrize('dst, src, words', [
    (conv_norm(), conv_norm(5), ('entry 0 ', '0.weight (4, 3, 1, 1)', '0.weight (5, 3, 1, 1)')),
    (conv_norm(ks=3), conv_norm(), ('entry 0 ', '0.weight (4, 3, 3, 3)', '0.weight (4, 3, 1, 1)')),
    (nn.Linear(3, 4), nn.Conv2d(3, 4, 3), ('entry 0 ', 'weight (4, 3)', 'weight (4, 3, 3, 3)')),
    (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, (1,2)), ('entry 0 ', 'weight (4, 3, 1, 1)', 'weight (4, 3, 1, 2)')),
    (headed(2), headed(3), ('entry 7 ', '1.weight (2, 2)', '1.weight (3, 2)')),
    (headed(2), conv_norm(), ('entry 7 ', '1.weight (2, 2)', 'nothing')),
    (conv_norm(), headed(2), ('entry 7 ', '1.weight (2, 2)', 'nothing')),
    (nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)),
        ('entry 2 ', '0.running_mean (4,)', '0.num_batches_tracked ()'))])
def test_copy_weights_names_the_first_difference_and_copies_nothing(dst, src, words):
    before = deepcopy(dst.state_dict())
    with pytest.raises(Exception) as e: copy_weights(dst, src)
    assert one_line(e, *words)
    assert all(torch.equal(o, before[k]) for k,o in dst.state_dict().items())

def test_another_order_cannot_be_copied():
    class IdFirst(ResBlock):
        def __init__(self, ni, nf, stride=1):
            super().__init__(ni, nf, stride)
            self._modules['branch'] = self._modules.pop('branch')
    with pytest.raises(Exception) as e: copy_weights(ResNet(10, [2,2,2,2], IdFirst), resnet18(10))
    assert one_line(e, 'stage2.0.shortcut.project.0.weight (128, 64, 1, 1)', 'stage2.0.branch.0.0.weight (128, 64, 3, 3)')

# --- timm's weights in the course's class -----------------------------------------------------------------------
@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "By depth: timm's net for 7 classes with random batch norms, and the file of its state dict"
    folder,made = tmp_path_factory.mktemp('timm'),{}
    def get(depth):
        if depth not in made:
            ref,file = randomise_bn(timm_net(depth, 7)),folder/f'{depth}.safetensors'
            save_file(ref.state_dict(), file)
            made[depth] = ref.eval(),file
        return made[depth]
    return get

def shapes(weights): return [(k,o.shape) for k,o in weights.items()]

@pytest.mark.parametrize('depth', nets)
def test_names_are_timms_in_the_same_order(depth):
    with torch.device('meta'): assert shapes(to_timm(nets[depth](10)))==shapes(timm_net(depth).state_dict())

@pytest.mark.parametrize('depth', [18,50])
def test_round_trip(saved, depth):
    ref,file = saved(depth)
    model = from_timm(file)
    assert type(model) is ResNet and model.head[-1].out_features==7
    back = to_timm(model)
    assert list(back)==list(ref.state_dict())
    assert all(torch.equal(back[k], o) for k,o in ref.state_dict().items())
    other = timm_net(depth, 7)
    other.load_state_dict(back)
    x = torch.randn(2,3,65,49)
    expected = ref(x)
    for m in (model,other): torch.testing.assert_close(m.eval()(x), expected)

def test_a_fresh_head(saved):
    ref,file = saved(18)
    whole = from_timm(str(file)).state_dict()
    for n in (3,7):
        model = from_timm(file, n_out=n)
        assert model.head[-1].weight.shape==(n,512) and model(torch.randn(2,3,64,64)).shape==(2,n)
        model = from_timm(file, n_out=n).state_dict()
        assert all(torch.equal(o, whole[k]) for k,o in model.items() if n==7 or k[:4]!='head')

def test_a_channels_last_net_can_be_saved(tmp_path):
    model = resnet18(10).to(memory_format=torch.channels_last)
    save_file(to_timm(model), tmp_path/'a.safetensors')
    assert all(torch.equal(a, b) for a,b in zip(from_timm(tmp_path/'a.safetensors').state_dict().values(),
                                                model.state_dict().values(), strict=True))

def test_to_timm_wants_the_courses_net():
    others = [('stage2.0.shortcut.0.weight',resnet_b(18)), ('stage1.0.shortcut.0.weight',resnet_b(50)),
              ('stage2.0.shortcut.0.weight',ResNet(10, [2,2,2,2], BasicBlock)), ('conv1.weight',tv_net(18)),
              ('weight',nn.Linear(2, 2))]
    for word,m in others:
        with pytest.raises(Exception) as e: to_timm(m)
        assert one_line(e, word, 'no entry of the course')

def changed(file, change):
    weights = load_file(file)
    change(weights)
    return weights

@pytest.mark.parametrize('change, words', [
    (lambda w: w.pop('layer3.0.bn1.bias'), ('layer3.0.bn1.bias is nothing', '(256,)')),
    (lambda w: w.pop('fc.bias'), ('fc.', '(1000,')),
    (lambda w: w.update({'layer1.0.se.weight':torch.zeros(8, 9)}), ('layer1.0.se.weight is (8, 9)', 'nothing')),
    (lambda w: w.update({'layer2.0.bn1.weight':torch.zeros(9)}), ('layer2.0.bn1.weight is (9,)', '(128,)')),
    (lambda w: [w.pop(k) for k in list(w) if 'layer4' in k], ('layer4.0.conv1.weight is nothing',)),
    (lambda w: w.clear(), ('conv1.0.weight is nothing',))])
def test_weights_of_another_net(saved, tmp_path, change, words):
    file = tmp_path/'other.safetensors'
    save_file(changed(saved(18)[1], change), file)
    with pytest.raises(Exception) as e: from_timm(file)
    assert one_line(e, file, "not of timm's resnet*d", *words)

def test_nets_of_other_kinds(tmp_path):
    for m in (tv_net(18), tv_net(50), resnet18(10)):   # the course's own names are not timm's
        save_file(m.state_dict(), tmp_path/'a.safetensors')
        with pytest.raises(Exception) as e: from_timm(tmp_path/'a.safetensors')
        assert one_line(e, tmp_path/'a.safetensors', "not of timm's resnet*d", 'conv1.0.weight is nothing')

def test_old_weights_do_not_count_batches(saved, tmp_path):
    ref,file = saved(18)
    save_file(changed(file, lambda w: [w.pop(k) for k in list(w) if 'num_batches' in k]), tmp_path/'old.safetensors')
    x = torch.randn(2,3,64,64)
    torch.testing.assert_close(from_timm(tmp_path/'old.safetensors').eval()(x), ref(x))

def test_a_broken_file(saved, tmp_path):
    file,whole = tmp_path/'broken.safetensors',saved(18)[1].read_bytes()
    for content in (whole[:-1], whole[:100], whole[:3], b'', b'text'*99):
        file.write_bytes(content)
        with pytest.raises(Exception) as e: from_timm(file)
        assert one_line(e, file, 'not a complete safetensors file')

def test_no_file(tmp_path):
    (tmp_path/'dir.safetensors').mkdir()
    for name,words in (('none.safetensors','no such file'), ('dir.safetensors','not a complete safetensors file')):
        with pytest.raises(Exception) as e: from_timm(tmp_path/name)
        assert one_line(e, tmp_path/name, words)

def test_by_name(saved, monkeypatch):
    ref,_ = saved(18)
    calls = []
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: calls.append((args,kwargs)) or ref)
    for name in ('resnet18d','resnet18d.ra2_in1k'):
        assert all(torch.equal(o, ref.state_dict()[k]) for k,o in to_timm(from_timm(name)).items())
    assert calls==[(('resnet18d',),dict(pretrained=True)), (('resnet18d.ra2_in1k',),dict(pretrained=True))]

def test_by_name_without_network_or_timm(monkeypatch):
    def offline(*args, **kwargs): raise OSError('[Errno -2] Name or service not known\nsecond line')
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(Exception) as e: from_timm('resnet50d')
    assert one_line(e, 'resnet50d', 'OSError', 'network', '.safetensors')
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(Exception) as e: from_timm('resnet50d')
    assert one_line(e, 'resnet50d', 'ModuleNotFoundError', 'pip install timm', '.safetensors')

@pytest.mark.parametrize('name', ['resnet50', 'resnet26d', 'vit_base', 'resnet50d.', 'weights.pth', '', 50])
def test_a_name_that_is_none(monkeypatch, name):
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: pytest.fail('asked timm'))
    with pytest.raises(Exception) as e: from_timm(name)
    assert one_line(e, name, 'no .safetensors file', 'resnet18d', 'resnet152d')

# --- counts -----------------------------------------------------------------------------------------------------
def counts(make, n_out=1000):
    with torch.device('meta'): m = make(n_out)
    return total_params(m), len(m.state_dict()), layer_costs(m, 224).macs.sum()

@pytest.mark.parametrize('depth', nets)
def test_counts_are_those_of_the_libraries(depth):
    for n_out in (10,1000):
        assert counts(nets[depth], n_out)==counts(partial(timm_net, depth), n_out)
        b,v1 = (counts(partial(f, depth), n_out) for f in (resnet_b,resnet_v1))
        assert b==counts(partial(tv_net, depth), n_out)
        assert v1[:2]==b[:2] and (v1[2]<b[2])==(depth>=50)

def test_arguments_of_the_classic_designs():
    for f in (partial(resnet_b, 18), partial(resnet_v1, 50), partial(plain_resnet, layers=[1]*4, block=BasicBlock)):
        assert f(n_out=3, c_in=1)(torch.randn(2,1,64,64)).shape==(2,3)
    assert all(resnet_b(d).head[-1].out_features==resnet_v1(d).head[-1].out_features==1000 for d in (18,50))
    assert [len(o) for o in plain_resnet(10, [1,2,3,4], BottleneckB).stages]==[1,2,3,4]
    for block in (BasicBlock, BottleneckV1, BottleneckB):
        for nf in (8,16):
            for stride,out in ((1,(17,10)), (2,(9,5)), (3,(6,4))):
                assert block(8, nf, stride)(torch.randn(2,8,17,10)).shape==(2,nf,*out)
    assert [type(o) for o in plain_stem(1, norm_type=None, act_cls=None)[0]]==[nn.Conv2d]

@pytest.mark.parametrize('depth', [0, 20, 200, '50', None])
def test_a_depth_that_is_none(depth):
    for f in (resnet_layers, resnet_v1, resnet_b):
        with pytest.raises(Exception) as e: f(depth)
        assert one_line(e, f'ResNet-{depth} ', '18, 34, 50, 101, 152')

def test_layer_costs():
    m = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1, groups=2, bias=False), nn.Flatten(),
        nn.Linear(8*5*4, 7))
    costs = layer_costs(m.train(), (9,7))
    assert costs.name.tolist()==['0','1','3'] and costs.kind.tolist()==['conv3x3','conv1x1','linear']
    assert costs.in_shape.tolist()==[(3,9,7), (8,5,4), (160,)] and costs.out_shape.tolist()==[(8,5,4), (8,5,4), (7,)]
    assert costs.params.tolist()==[3*9*8+8, 8*4, 160*7+7]
    assert costs.macs.tolist()==[20*8*27, 20*8*4, 160*7]
    assert m.training and not any(o._forward_hooks for o in m.modules())
    for size in (97, (97,131)): assert layer_costs(resnet18(10), size).out_shape.iloc[-2]==(512,4,4 if size==97 else 5)

# --- a seed gives the weights with which the recorded runs began ------------------------------------------------
def drawn_in_order(*parts):
    "The entries that layers hold when they are made in this order, after seed 42; each is a function"
    set_seed(42)
    return [[v.clone() for v in make().state_dict().values()] for make in parts]
def begins_with(net, *parts):
    "Do the layers of `net` hold these entries, one after the other?"
    return all(torch.equal(a, b) for a,b in zip(net.state_dict().values(), [v for p in parts for v in p], strict=True))
def seeded(make):
    set_seed(42)
    return make()
stage_args = [(64,64,2,1), (64,128,2,2), (128,256,2,2), (256,512,2,2)]
def stages_of(block): return [partial(ResNet.make_stage, block, *o) for o in stage_args]

def test_the_order_in_which_resnet_draws():
    "The stages first, then the stem, then the linear layer"
    *stages,stem,head = drawn_in_order(*stages_of(ResBlock), partial(resnet_stem, 3, 32, 32, 64), partial(nn.Linear, 512, 10))
    assert begins_with(seeded(partial(resnet18, 10)), stem, *stages, head)

def test_the_order_in_which_the_classic_nets_draw():
    "The stem of 2015 first, then what `ResNet` draws"
    stem,*stages,_,head = drawn_in_order(plain_stem, *stages_of(BasicBlock), partial(resnet_stem, 3, 32, 32, 64),
                                         partial(nn.Linear, 512, 10))
    assert begins_with(seeded(partial(resnet_b, 18, 10)), stem, *stages, head)

def test_the_order_in_which_the_nets_for_cifar_draw():
    "From the first layer to the last"
    def block(ni, nf, stride): return CifarBlock(ni, nf, stride, nn.Identity() if ni==nf else PadChannels(nf, stride))
    parts = drawn_in_order(partial(ConvLayer, 3, 16), *[partial(block, *o) for o in [(16,16,1), (16,32,2), (32,64,2)]],
                           partial(nn.Linear, 64, 10))
    assert begins_with(seeded(partial(cifar_resnet, 8)), *parts)
