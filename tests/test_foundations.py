"What From flattening to averaging and The residual block show of their nets, in full"
import pytest
from fastai.vision.all import *
from itertools import product   # after fastai, which has another
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails, test_ne as ne
from resnet_course.kit.costs import layer_costs
from resnet_course.kit.drawing import net_tensors
from resnet_course.fcn import avg_pool, fcn_block, get_fcn
from resnet_course.resblock import ResBlock, gamma_experiment, two_blocks

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# --- From flattening to averaging -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('grid', [(1,1),(4,4),(7,5)])
def test_avg_pool(grid):
    x = torch.randn(4,16,*grid)
    close(avg_pool(x), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())(x), eps=1e-6)
    eq(avg_pool(x).shape, (4,16))
    mixed = x.flatten(2)[..., torch.randperm(grid[0]*grid[1])].view_as(x)
    close(avg_pool(mixed), avg_pool(x), eps=1e-5)

def test_places_vote():
    grid,linear = torch.randn(2,256,4,4),nn.Linear(256,10)
    close(linear(grid.permute(0,2,3,1)).mean((1,2)), linear(avg_pool(grid)), eps=1e-5)

def test_fcn_block():
    block = fcn_block(3, 16)
    eq([type(o) for o in block], [nn.Conv2d,nn.BatchNorm2d,nn.ReLU])
    eq(block(torch.randn(4,3,33,20)).shape, (4,16,17,10))
    assert block[0].bias is None   # the batch norm that follows has one

def test_fcn_shapes_and_costs():
    net = get_fcn(10)
    shapes,skips = net_tensors(net, 3, 128, 128)
    eq(shapes, [(3,128,128), (16,64,64), (32,32,32), (64,16,16), (128,8,8), (256,4,4), (256,1,1), (10,)])
    eq(skips, [])
    eq([total_params(net)[0], total_params(net[:5])[0]], [395_674,393_104])
    costs = layer_costs(net, 128)
    eq(costs.params[1:5].tolist(), [4608*4**i for i in range(4)])
    eq(costs.macs[1:5].tolist(), [4_718_592]*4)
    eq(costs.macs.sum(), 20_646_400)

@pytest.mark.parametrize('size', [(96,96),(128,128),(224,224),(97,131),(1,1)])
def test_fcn_takes_any_size(size): eq(get_fcn(7).eval()(torch.randn(2,3,*size)).shape, (2,7))

def test_each_argument_of_get_fcn_counts():
    def conv(ni, nf): return nn.Conv2d(ni, nf, 2, stride=2)
    eq(get_fcn(7, c_in=1)(torch.randn(2,1,64,64)).shape, (2,7))
    eq([m[0].out_channels for m in get_fcn(7, widths=(8,24))[:2]], [8,24])
    eq(type(get_fcn(7, block=conv)[0]), nn.Conv2d)

@pytest.mark.parametrize('n', range(1,6))
def test_what_a_place_sees(n):
    "After n blocks 2**(n+1)-1 pixels across"
    x = torch.randn(1,3,160,160, requires_grad=True)
    grid = get_fcn(10).eval()[:n](x)
    i = grid.shape[-1]//2
    grid[...,i,i].sum().backward()
    say = x.grad[0].abs().sum(0)>0
    eq([say.any(0).sum().item(), say.any(1).sum().item()], [2**(n+1)-1]*2)

def test_a_flattened_end_fits_one_size():
    flat = nn.Sequential(*get_fcn(10)[:5], nn.Flatten(), nn.Linear(256*4*4, 10)).eval()
    eq(flat(torch.randn(2,3,128,128)).shape, (2,10))
    fails(lambda: flat(torch.randn(2,3,96,96)), contains='2x2304 and 4096x10')

# --- The residual block ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('stride', [1,2,3])
def test_resblock_at_any_size(stride):
    block = ResBlock(2, 4, stride).eval()
    for h,w in product(range(1,11), repeat=2):
        eq(block(torch.randn(2,2,h,w)).shape, (2, 4, math.ceil(h/stride), math.ceil(w/stride)))

def test_a_pool_of_another_stride_does_not_fit():
    "Chapter 14 writes a 2 there"
    block = ResBlock(8, 8, stride=3)
    block.shortcut.pool = nn.AvgPool2d(2, ceil_mode=True)
    fails(lambda: block(torch.randn(2,8,9,9)), contains='must match')

def test_ceil_mode_takes_no_zeros_from_beyond_the_edge():
    x = torch.ones(1,8,7,7)
    eq(nn.AvgPool2d(2, ceil_mode=True)(x), torch.ones(1,8,4,4))
    eq(ResBlock(8, 8, 2).shortcut.pool.ceil_mode, True)

@pytest.mark.parametrize('args,parts', [((8,8),[]), ((8,8,2),['pool']), ((8,16),['project']), ((8,16,2),['pool','project'])])
def test_the_shortcut_holds_what_it_needs(args, parts):
    shortcut = ResBlock(*args).shortcut
    eq([name for name,_ in shortcut.named_children()], parts)
    if 'project' in parts: eq([type(o) for o in shortcut.project], [nn.Conv2d,nn.BatchNorm2d])   # no ReLU on the shortcut

def test_pool_and_projection_can_change_places():
    x,conv,pool = torch.randn(4,8,6,6),nn.Conv2d(8, 16, 1, bias=False),nn.AvgPool2d(2)
    close(conv(pool(x)), pool(conv(x)), eps=1e-5)
    close(conv(x), torch.einsum('bihw,oi->bohw', x, conv.weight[...,0,0]), eps=1e-5)
    macs = [layer_costs(nn.Sequential(*o), 32, c_in=8).macs.sum() for o in ((pool,conv), (conv,pool))]
    eq(macs[1], 4*macs[0])

def test_each_argument_of_resblock_counts():
    def describe(ni=8, nf=8, stride=1):
        block = ResBlock(ni, nf, stride)
        return [p.shape for p in block.parameters()],block(torch.randn(2,ni,12,12)).shape
    all_of_them = [describe(**o) for o in ({}, dict(ni=4), dict(nf=4), dict(stride=2), dict(stride=3))]
    for i,a in enumerate(all_of_them):
        for b in all_of_them[:i]: ne(a, b)

def test_a_fresh_resblock_adds_its_beta():
    block,x = ResBlock(8, 8),torch.randn(4,8,16,16)
    eq([block.last_norm.weight.unique().item(), block.last_norm.bias.unique()], [0., tensor([.001])])
    close(block(x.relu()), x.relu()+.001, eps=1e-6)
    close(nn.Sequential(*[ResBlock(8, 8) for _ in range(10)])(x.relu()), x.relu()+.01, eps=1e-5)
    nn.init.zeros_(block.last_norm.bias)
    eq(block(x.relu()), x.relu())
    eq(block(x), x.relu())

def test_resblock_adds_and_takes_away():
    block,x = ResBlock(8, 8),torch.randn(4,8,16,16).relu()
    nn.init.normal_(block.last_norm.weight)
    y = block(x)
    assert (y<x).any() and (y>x).any() and y.min()>=0

def test_what_gets_a_gradient():
    "At first only gamma and beta of the last norm, after a step all"
    block,x = ResBlock(8, 8),torch.randn(4,8,16,16).relu()
    opt = torch.optim.SGD(block.parameters(), .1)
    got = []
    for _ in range(2):
        opt.zero_grad()
        (block(x)-x.roll(1,-1)).pow(2).mean().backward()
        got.append([n for n,p in block.named_parameters() if p.grad.abs().max()>0])
        opt.step()
    eq(got[0], ['branch.1.1.weight','branch.1.1.bias'])
    eq(got[1], [n for n,_ in block.named_parameters()])

blocks = dict(fcn=fcn_block, resblock=partial(ResBlock, stride=2), resblock2=two_blocks)
@pytest.mark.parametrize('name,params,depth,times', [('fcn',395_674,6,1), ('resblock',1_226_890,11,3.11), ('resblock2',2_800_202,21,7.11)])
def test_nets_of_resblocks(name, params, depth, times):
    net = get_fcn(10, blocks[name])
    costs = layer_costs(net, 128)
    eq([total_params(net)[0], (~costs.name.str.contains('shortcut')).sum()], [params,depth])
    by_stage = costs.macs.groupby(costs.name.str[0]).sum()
    eq(by_stage.iloc[1:5].nunique(), 1)
    close(by_stage.iloc[1]/4_718_592, times, eps=.01)
    x,got = torch.randn(2,3,97,128),[]
    for stage in net[:5]:
        x = stage(x)
        got.append(tuple(x.shape[1:]))
    eq(got, [(16,49,64), (32,25,32), (64,13,16), (128,7,8), (256,4,4)])

def test_gamma_experiment():
    for name,make in gamma_experiment.nets.items():
        eq({m.last_norm.weight.unique().item() for m in make(10).modules() if isinstance(m, ResBlock)}, {float(name[-1])})
