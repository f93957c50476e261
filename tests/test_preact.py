"The pre-activation nets compute what timm's `resnetv2_*` do, and a net that is slightly wrong is noticed"
import pytest, timm
from fastai.vision.all import *
from resnet_course.kit.files import CourseError
from resnet_course.kit.costs import layer_costs
from resnet_course.resnet import ResNet
from resnet_course.classics import copy_weights, resnet_layers
from resnet_course.preact import preact_resnet, PreActBlock, PreActBottleneck
from conftest import randomise_bn
from test_equality import differences, same, small

def reference(depth, n_out=10): return timm.create_model(f'resnetv2_{depth}', num_classes=n_out, pretrained=False)

def rebuilt(block, depth=18):
    "`preact_resnet(depth)` with another block"
    net = preact_resnet(depth, 10)
    return nn.Sequential(net.stem, *ResNet(10, resnet_layers(depth), block).stages, net.head)

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad(): yield

@pytest.mark.parametrize('depth', [18,34])
def test_equals_timm(depth): assert differences(preact_resnet(depth, 10), reference(depth))==set()

@pytest.mark.parametrize('depth', [50,101,152])
def test_equals_timm_when_deep(depth):
    "In double precision: on a path without norms the numbers grow, and what is rounded off grows with them"
    torch.set_default_dtype(torch.float64)
    try: assert differences(preact_resnet(depth, 10), reference(depth), **small(depth))==set()
    finally: torch.set_default_dtype(torch.float32)

def test_equals_timm_at_1000_classes(): assert differences(preact_resnet(18), reference(18, 1000))==set()

# --- wrong nets are noticed -------------------------------------------------------------------------------------
class RawProjection(PreActBlock):
    def forward(self, x): return self.branch(self.preact(x)) + (x if self.shortcut is None else self.shortcut(x))
class RawBranch(PreActBlock):
    "The pre-activation is computed and not used: the mistake of the v1/v2 note"
    def forward(self, x):
        y = self.preact(x)
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(y))
class NormOnProjection(PreActBlock):
    "With its batch's own statistics, and nothing to copy"
    def forward(self, x):
        y = self.preact(x)
        norm = partial(F.batch_norm, running_mean=None, running_var=None, training=True)
        return self.branch(y) + (x if self.shortcut is None else norm(self.shortcut(y)))
class PathOfPreact(PreActBlock):
    def forward(self, x):
        y = self.preact(x)
        return self.branch(y) + (y if self.shortcut is None else self.shortcut(y))
class ReluAfterSum(PreActBlock):
    def forward(self, x): return super().forward(x).relu()
class ReluThenNorm(PreActBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        for m in (self.preact, self.branch[1]): m._modules = dict(reversed(m._modules.items()))
class PostActivation(PreActBlock):
    "v1's order with v2's layers; the norms after the convolutions have the widths of a block that keeps its shape"
    def forward(self, x):
        if self.shortcut is not None: return super().forward(x)
        conv1,(norm2,relu),conv2 = self.branch
        return (x + norm2(conv2(self.preact(conv1(x))))).relu()
class Silent(PreActBlock):
    def forward(self, x): return super().forward(x) - self.branch(self.preact(x))
class Momentum(PreActBlock):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d): m.momentum = 0.01
class StrideFirst(PreActBottleneck):
    @staticmethod
    def conv_branch(ni, nf, stride):
        convs = PreActBottleneck.conv_branch(ni, nf, 1)
        convs[0].stride = (stride,stride)
        return convs

everywhere = {'even','odd','train'}
@pytest.mark.parametrize('block, depth', [(RawProjection,18), (RawBranch,18), (NormOnProjection,18), (PathOfPreact,18),
    (ReluAfterSum,18), (ReluThenNorm,18), (PostActivation,18), (Silent,18), (StrideFirst,50)])
def test_a_wrong_block_is_noticed(block, depth): assert differences(rebuilt(block, depth), reference(depth))==everywhere
def test_a_wrong_momentum_is_noticed_in_training(): assert differences(rebuilt(Momentum), reference(18))=={'train'}

def test_the_block_put_back_is_equal():
    "So that what `rebuilt` notices is the block's doing"
    assert differences(rebuilt(PreActBlock), reference(18))==set()

@pytest.mark.parametrize('part', [0,1])
def test_a_missing_last_norm_or_relu_is_noticed(part):
    net,ref = preact_resnet(18, 10),randomise_bn(reference(18))
    copy_weights(net, ref)
    net.head[0][part] = nn.Identity()
    x = torch.randn(2,3,128,128)
    assert not same([net.eval()(x)], [ref.eval()(x)])

def test_another_layer_is_not_copied():
    net = preact_resnet(18, 10)
    wrong = {'last norm': nn.Sequential(net.stem, *net.stages, *net.head[1:]),
             'projection': rebuilt(type('Normed', (PreActBlock,), dict(__init__=with_norm)))}
    for name,m in wrong.items():
        with pytest.raises(CourseError, match='entry'): copy_weights(m, reference(18))
def with_norm(self, ni, nf, stride=1):
    PreActBlock.__init__(self, ni, nf, stride)
    if self.shortcut is not None: self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(nf))

# --- counts, arguments, start -----------------------------------------------------------------------------------
@pytest.mark.parametrize('depth', [18,34,50,101,152])
def test_counts_are_those_of_timm(depth):
    with torch.device('meta'): m,ref = preact_resnet(depth),timm.create_model(f'resnetv2_{depth}')
    assert (total_params(m), len(m.state_dict()))==(total_params(ref), len(ref.state_dict()))
    assert layer_costs(m, 224).macs.sum()==layer_costs(ref, 224).macs.sum()

def test_every_argument_counts():
    def about(**kwargs): return [p.shape for p in preact_resnet(**{**dict(depth=18, n_out=10), **kwargs}).parameters()]
    with torch.device('meta'):
        for changed in (dict(depth=34), dict(depth=50), dict(n_out=11), dict(c_in=1)): assert about(**changed)!=about()
    assert preact_resnet(18, 7, c_in=1)(torch.randn(2,1,33,20)).shape==(2,7)

@pytest.mark.parametrize('block', [PreActBlock, PreActBottleneck])
def test_every_size_and_stride(block):
    for stride in (1,2,3):
        blk = block(8, 16, stride)
        for h,w in [(1,1), (7,10), (33,20)]:
            assert blk(torch.randn(2,8,h,w)).shape==(2,16,-(-h//stride),-(-w//stride))
    assert block(8, 8).shortcut is None and block(8, 8, 2).shortcut is not None

@pytest.mark.parametrize('depth', [18,50])
def test_starts_with_branches_of_one_size(depth):
    "Bare convolutions have no norm behind them: kaiming's weights keep the size, PyTorch's make it a sixth"
    for m in preact_resnet(depth, 10).modules():
        if isinstance(m, nn.Conv2d):
            fan_in = m.weight[0].numel()
            assert m.weight.var().item()*fan_in==pytest.approx(2, rel=.1) and m.bias is None

def test_path_is_a_sum():
    "Even for what is negative; v1's ReLU cuts it off"
    blk,x = PreActBlock(8, 8),torch.randn(2,8,9,9)
    nn.init.zeros_(blk.branch[-1].weight)
    assert torch.equal(blk(x), x)
    torch.manual_seed(1)
    blk = PreActBlock(8, 8)
    torch.testing.assert_close(blk(x)-x, blk.branch(blk.preact(x)))
    assert blk(x).min()<0
