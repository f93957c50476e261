"Muon in few products: against its definition, step by step, in double precision"
import pytest, torch
from copy import deepcopy
from torch import nn
from resnet_course.kit.files import CourseError
from torch.utils._python_dispatch import TorchDispatchMode
from resnet_course import ingredients
from resnet_course.ingredients import Muon, orthogonal

A,B,C = 3.4445,-4.775,2.0315

def by_definition(g):
    "One matrix: scaled by the root of the norm of x@x.T, then four rounds, one by one"
    x = g.double()
    if tall:=len(x)>x.shape[1]: x = x.T
    norm = (x@x.T).norm()
    x = x/norm.sqrt() if norm>0 else x
    for _ in range(4):
        xx = x@x.T
        x = A*x + (B*xx + C*xx@xx)@x
    return x.T if tall else x

def matrix(shape, spread=.5, seed=0):
    "With singular values from 1 down to 1-`spread`"
    torch.manual_seed(seed)
    u,_,v = torch.linalg.svd(torch.randn(shape, dtype=torch.double), full_matrices=False)
    s = torch.linspace(1, 1-spread, min(shape), dtype=torch.double)
    return (u*s@v).float()

@pytest.fixture(params=[torch.bfloat16, torch.float32])
def products(request, monkeypatch):
    "What products are computed in: in fp32 rounds are taken together"
    monkeypatch.setattr(ingredients, '_products', lambda device: request.param)

shapes = [(8,40), (40,8), (16,16), (1,9), (9,1), (64,576), (32,27), (128,64)]
@pytest.mark.parametrize('shape', shapes)
@pytest.mark.parametrize('scale', [1e-15, 1e-4, 1., 1e9])
def test_orthogonal_is_four_rounds(shape, scale, products):
    g = matrix(shape)
    y,expected = orthogonal(scale*g[None])[0].double(),by_definition(g)
    assert y.shape==g.shape and (y-expected).norm()/expected.norm() < .08

@pytest.mark.parametrize('weakest', [.5, .97, .9999])
@pytest.mark.parametrize('shape', [(48,300), (300,48), (512,4608)])
def test_rounds_in_fp32_are_those_one_by_one(shape, weakest, monkeypatch):
    "In each of the gradient's directions, the weakest included, whose square is near what fp32 can tell from 0"
    monkeypatch.setattr(ingredients, '_products', lambda device: torch.float32)
    g = matrix(shape, weakest)
    u,_,v = torch.linalg.svd(g.double(), full_matrices=False)
    got,expected = ((u.T@o.double()@v.T).diagonal() for o in (orthogonal(g[None])[0], by_definition(g)))
    assert ((got-expected)/expected).abs().max() < .01   # the result is rounded to bf16

@pytest.mark.parametrize('weakest', [.5, .9, .97])
def test_weak_directions_grow(weakest, products):
    "The singular values in the directions of the gradient come near 1, whatever they were"
    g = matrix((48,300), weakest)
    u,_,v = torch.linalg.svd(g.double(), full_matrices=False)
    s = (u.T@orthogonal(g[None])[0].double()@v.T).diagonal()
    assert .55<s.min() and s.max()<1.35, s

@pytest.mark.parametrize('rank', [1, 2, 5])
@pytest.mark.parametrize('shape', [(64,576), (512,4608), (256,64)])
def test_nothing_grows_beyond_bounds(shape, rank, products):
    "Where most singular values are 0, rounding makes small ones of them, which must not explode"
    torch.manual_seed(rank)
    g = torch.randn(shape[0], rank)@torch.randn(rank, shape[1])
    assert torch.linalg.matrix_norm(orthogonal(g[None])[0].float(), 2) < 1.35

def test_matrices_do_not_mix():
    many = torch.stack([matrix((12,30), seed=o)*10.**o for o in range(-3,4)])
    for x,y in zip(many, orthogonal(many)): assert torch.allclose(orthogonal(x[None])[0].float(), y.float(), atol=.02)

class Products(TorchDispatchMode):
    "Notes the formats in which matrices are multiplied, and how many at once"
    def __init__(self): super().__init__(); self.formats,self.at_once = set(),set()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm, torch.ops.aten.baddbmm):
            self.formats.add(args[-1].dtype); self.at_once.add(len(args[0]) if args[0].ndim==3 else 1)
        return f(*args, **(kwargs or {}))

@pytest.mark.parametrize('dtype, n, rows, threads, at_once', [
    (torch.float32,3,256,2,1), (torch.float32,4,256,2,4), (torch.float32,3,255,2,3), (torch.float32,3,256,1,3),
    (torch.float32,1,256,2,1), (torch.bfloat16,3,256,2,3)])
def test_large_matrices_that_threads_cannot_share_out_come_alone(monkeypatch, dtype, n, rows, threads, at_once):
    "A thread takes whole matrices: of two threads, one would wait while the other has the third. The result is the same"
    monkeypatch.setattr(ingredients, '_products', lambda device: dtype)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    many = torch.stack([matrix((rows,300), seed=o) for o in range(n)])
    with Products() as seen: found = orthogonal(many)
    assert seen.at_once=={at_once}
    for x,y in zip(many, found): assert torch.allclose(orthogonal(x[None])[0].float(), y.float(), atol=.02)

@pytest.mark.parametrize('precision, dtype', [('bf16',torch.bfloat16), ('fp16',torch.float32), ('fp32',torch.float32)])
@pytest.mark.parametrize('shape', [(16,90), (90,16)])
def test_products_are_in_a_format_that_the_device_is_fast_at(precision, dtype, shape, monkeypatch):
    "A processor without units for bf16 takes many times as long in it as in fp32"
    monkeypatch.setattr(ingredients, 'choose_precision', lambda device: (precision, ''))
    g = matrix(shape)
    with Products() as seen: y = orthogonal(g[None])
    assert seen.formats=={dtype} and y.dtype==torch.bfloat16
    assert (y[0].double()-by_definition(g)).norm()/by_definition(g).norm() < (.08 if dtype==torch.bfloat16 else .01)

def test_a_gradient_of_zeros_stays_one():
    g = torch.stack([torch.zeros(4,9), matrix((4,9))])
    y = orthogonal(g)
    assert (y[0]==0).all() and y[1].isfinite().all() and y[1].abs().sum()>0

def reference(p, grads, lr, mom, wd):
    "Muon's steps by their definition, from Jordan 2024 and Liu et al. 2025"
    p,avg = p.double(),torch.zeros_like(p, dtype=torch.double)
    for g in grads:
        g = g.double()
        avg = mom*avg + (1-mom)*g
        p = p*(1-lr*wd) - .2*lr*max(p.shape[0], p[0].numel())**.5*by_definition(((1-mom)*g + mom*avg).flatten(1)).view(p.shape)
    return p

def kernel(shape, last): return nn.Parameter(torch.randn(shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format))

@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('shape', [(6,5,3,3), (5,6,1,1), (4,3,5,1), (1,2,3,3)])
def test_steps_by_the_definition(shape, last):
    torch.manual_seed(0)
    p = kernel(shape, last)
    start,grads = p.detach().clone(),[torch.randn(shape) for _ in range(4)]
    opt = Muon([p], lr=.05, mom=.9, wd=.3)
    for g in grads:
        p.grad = g.clone()
        opt.step()
        opt.zero_grad()
    expected = reference(start, grads, .05, .9, .3)
    assert (p-expected).norm()/(start-expected).norm() < .05

def test_kernels_of_one_shape_step_as_each_alone():
    torch.manual_seed(0)
    start,grads = torch.randn(3,6,5,3,3),torch.randn(3,6,5,3,3)
    def stepped(*which):
        ps = [nn.Parameter(start[i].clone()) for i in which]
        opt = Muon(ps, lr=.1)
        for p,i in zip(ps, which): p.grad = grads[i].clone()
        opt.step()
        return ps
    for i,p in enumerate(stepped(0,1,2)): assert torch.allclose(p, stepped(i)[0], atol=2e-3)

def test_groups_have_their_own_rates():
    a,b = kernel((4,3,3,3), False),kernel((4,3,3,3), False)
    opt = Muon([[a],[b]], lr=[0.,.1], wd=0.)
    before = a.detach().clone(),b.detach().clone()
    for p in (a,b): p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(a, before[0]) and not torch.equal(b, before[1])

def test_a_kernel_without_a_gradient():
    "Stays as it is before its first gradient; afterwards a missing one counts as zero: its momentum moves it on"
    a,b = kernel((4,3,3,3), False),kernel((4,3,3,3), False)
    opt = Muon([a,b], lr=.1, wd=0.)
    start = b.detach().clone()
    a.grad = torch.ones_like(a)
    opt.step()
    assert torch.equal(b, start)
    b.grad = torch.randn_like(b)
    opt.step()
    opt.zero_grad()
    once = b.detach().clone()
    opt.step()
    assert not torch.equal(b, once)

def test_state_of_other_kernels_is_refused():
    a,b = kernel((4,3,3,3), False),kernel((6,3,3,3), False)
    opt,other = Muon([a], lr=.1),Muon([b], lr=.1)
    a.grad,b.grad = torch.ones_like(a),torch.ones_like(b)
    opt.step()
    other.load_state_dict(deepcopy(opt.state_dict()))
    with pytest.raises(CourseError, match='create_opt'): other.step()

def test_complex_kernels_take_adams_step():
    p = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.cfloat))
    before,p.grad = p.detach().clone(),torch.randn_like(p)
    Muon([p], lr=.1, wd=0.).step()
    assert (p.real!=before.real).all() and (p.imag!=before.imag).all()

def test_what_is_frozen_stays():
    "Though it has a gradient"
    p = nn.Parameter(torch.ones(4, 3, 3, 3))
    p.grad = torch.randn_like(p)
    p.requires_grad_(False)
    Muon([p], lr=.1).step()
    assert (p==1).all()

def test_what_is_no_kernel_takes_adams_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*36,2))
    opt = Muon(list(net.parameters()), lr=.01, wd=0.)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(5,3,8,8)).pow(2).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    opt.step()
    for p,was,g in zip(net.parameters(), before, grads):
        if p.ndim<4: assert torch.allclose(was-p, .01*g.sign()*(g.abs()>1e-3), atol=2e-3)   # its first is of length lr
    assert 'sqr_avg' not in opt.state[net[0].weight] and 'sqr_avg' in opt.state[net[3].weight]
