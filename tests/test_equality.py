"The course's nets compute what timm's and fastai's do, and cost as much"
import numpy as np, pytest, timm, torch
from fastai.vision.all import *
from sklearn.metrics import top_k_accuracy_score
from resnet_course.resblock import ResBlock
from resnet_course.bottleneck import Bottleneck, resnet50
from resnet_course.resnet import ResNet, resnet18, resnet34
from resnet_course.training import layer_costs, top_k_accuracy

nets = {18:resnet18, 34:resnet34, 50:resnet50}

def randomise_bn(model):
    "A fresh net's last batch norm of each block has gamma 0, which would hide the whole branch"
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.running_var): t.data.uniform_(.5, 1.5)
            for t in (m.bias, m.running_mean): t.data.uniform_(-.3, .3)
    return model

def copy_in_order(dst, src):
    "Copy parameters and buffers in the order of the modules"
    d,s = [list(m.state_dict().values()) for m in (dst,src)]
    assert [o.shape for o in d]==[o.shape for o in s]
    for a,b in zip(d,s): a.copy_(b)

def same(a, b): return all(torch.allclose(o, p, rtol=1e-5, atol=1e-5) for o,p in zip(a, b, strict=True))

def differences(net, ref):
    "In which of three forward passes `net`, with the weights of `ref`, computes something else"
    copy_in_order(net, ref)
    xs = dict(even=torch.randn(2,3,128,128), odd=torch.randn(2,3,131,97), train=torch.randn(4,3,64,64))
    found = set()
    for name,x in xs.items():
        for m in (net,ref): m.train(name=='train')
        try: alike = same([net(x), *net.buffers()], [ref(x), *ref.buffers()])
        except RuntimeError: alike = False   # shapes that do not fit
        if not alike: found.add(name)
    return found

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad(): yield

@pytest.mark.parametrize('depth', nets)
def test_equals_timm(depth):
    ref = randomise_bn(timm.create_model(f'resnet{depth}d', num_classes=10, pretrained=False))
    assert differences(nets[depth](10), ref)==set()

def test_equals_fastai(): assert differences(resnet18(10), randomise_bn(xresnet18(n_out=10)))==set()

# --- the same comparison notices wrong blocks -------------------------------------------------------------------
class PoolAfter(ResBlock):
    def forward(self, x): return F.relu(self.convs(x) + self.pool(self.idconv(x)))
class PoolFloor(ResBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        if stride>1: self.pool = nn.AvgPool2d(stride)
class Momentum(ResBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d): m.momentum = 0.01
class Strided(ResBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        self.pool = nn.MaxPool2d(1, stride)
class ReluInBranch(ResBlock):
    def forward(self, x): return F.relu(F.relu(self.convs(x)) + self.idconv(self.pool(x)))
class NoRelu(ResBlock):
    def forward(self, x): return self.convs(x) + self.idconv(self.pool(x))
class NoBranch(ResBlock):
    def forward(self, x): return F.relu(0*self.convs(x) + self.idconv(self.pool(x)))
class StrideFirst(Bottleneck):
    @staticmethod
    def conv_branch(ni, nf, stride):
        return nn.Sequential(ConvLayer(ni, nf//4, 1, stride=stride), ConvLayer(nf//4, nf//4),
            ConvLayer(nf//4, nf, 1, act_cls=None))

everywhere = {'even','odd','train'}
@pytest.mark.parametrize('block, where', [
    (PoolAfter, {'train'}), (PoolFloor, {'odd'}), (Momentum, {'train'}), # each is seen by one pass alone
    (Strided, everywhere), (ReluInBranch, everywhere), (NoRelu, everywhere), (NoBranch, everywhere),
    (StrideFirst, everywhere)])
def test_a_wrong_block_is_noticed(block, where):
    ref = timm.create_model('resnet50d' if block.expansion==4 else 'resnet18d', num_classes=10, pretrained=False)
    layers = [3,4,6,3] if block.expansion==4 else [2,2,2,2]
    assert differences(ResNet(10, layers, block), randomise_bn(ref))==where

def test_fresh_batch_norms_would_hide_the_branch():
    "Why `randomise_bn`: with gamma 0 not even a block without its branch is noticed in eval mode"
    ref = timm.create_model('resnet18d', num_classes=10, pretrained=False)
    assert 'even' not in differences(ResNet(10, [2,2,2,2], NoBranch), ref)

def test_another_order_cannot_be_copied():
    class IdFirst(ResBlock):
        def __init__(self, ni, nf, stride=1):
            super().__init__(ni, nf, stride)
            self._modules['convs'] = self._modules.pop('convs')
    with pytest.raises(AssertionError): copy_in_order(ResNet(10, [2,2,2,2], IdFirst), resnet18(10))

# --- counts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('depth, params10, params1000, entries, macs', [
    (18, 11_200_874, 11_708_744, 134, 2_053_713_920),
    (34, 21_309_034, 21_816_904, 230, 3_903_401_984),
    (50, 23_547_754, 25_576_264, 332, 4_328_824_832)])
def test_counts(depth, params10, params1000, entries, macs):
    assert total_params(nets[depth](10))==(params10, True)
    m = nets[depth]()
    assert (total_params(m)[0], len(m.state_dict()))==(params1000, entries)
    assert layer_costs(m, 224).macs.sum()==macs

@pytest.mark.parametrize('depth, zeros, norms', [(18,8,22), (34,16,38), (50,16,55)])
def test_each_block_begins_silent(depth, zeros, norms):
    found = [bool((m.weight==0).all()) for m in nets[depth](10).modules() if isinstance(m, nn.BatchNorm2d)]
    assert (sum(found), len(found))==(zeros, norms)

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

def test_layer_costs_leaves_the_model_as_it_was_when_the_size_does_not_fit():
    m = nn.Sequential(nn.Flatten(), nn.Linear(12,2))
    with pytest.raises(RuntimeError): layer_costs(m, 5)
    assert m.training and not any(o._forward_hooks for o in m.modules())

# --- top-k ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('k', [1,2,5,9])
def test_top_k_equals_sklearn(k):
    scores,targ = torch.randn(500,10), torch.arange(500)%10
    expected = top_k_accuracy_score(targ, scores.numpy(), k=k, labels=range(10))
    assert top_k_accuracy(scores, targ, k).item()==pytest.approx(expected)

def test_top_k_ends():
    scores,targ = torch.randn(20,10), torch.arange(20)%10
    for k in (10,11,1000): assert top_k_accuracy(scores, targ, k)==1
    ties = torch.tensor([[1.,1.,1.,0.]])
    assert [top_k_accuracy(ties, torch.tensor([t]), 1).item() for t in range(4)]==[1,1,1,0]
    assert [top_k_accuracy(ties, torch.tensor([3]), k).item() for k in (3,4)]==[0,1]

# --- whose names ------------------------------------------------------------------------------------------------
def test_the_course_names_win():
    names = {}
    exec('from fastai.vision.all import *\nfrom resnet_course.all import *', names)
    for n in ('ResBlock','ResNet','resnet18','resnet34','resnet50','resnet101','resnet152','top_k_accuracy'):
        assert names[n].__module__.startswith('resnet_course.'), n
    assert names['resnet18'](10)[-1].out_features==10
