"What a check has to tell apart, kind by kind: answers that look right and are not, right ones written oddly, and the words"
import sys
import pytest
from fastai.vision.all import *
from resnet_course import check
from resnet_course.fcn import fcn_block
from answers import answers_of, appended, around, block, branch, by_convs, net_of, squeeze, stem_of, with_cosines
from answers_later import cam_of, cropped, directions, unfolded

def said(capsys, name, *answers, **named):
    "What the check returns, and what it says"
    res = getattr(check, name)(*answers, **named)
    return res, capsys.readouterr().out

# --- a fresh block: which of its parameters ever learn ----------------------------------------------------------------
def starts(make, gammas=(), kernel=None):
    "A branch whose batch norms `gammas` start at 0, or whose convolution `kernel` does"
    def branch(ni, nf, stride):
        convs = make(ni, nf, stride, gamma=1)
        for i in gammas: nn.init.zeros_([o for o in convs if isinstance(o, nn.BatchNorm2d)][i].weight)
        if kernel is not None: nn.init.zeros_([o for o in convs if isinstance(o, nn.Conv2d)][kernel].weight)
        return convs
    return branch

not_last = [('resblock', branch, [(0,)]), ('bottleneck', squeeze, [(0,),(1,),(0,1)])]
@pytest.mark.parametrize('name, make, gammas', [(n,m,g) for n,m,gs in not_last for g in gs])
def test_gamma_0_has_to_be_the_last(name, make, gammas, capsys):
    res,text = said(capsys, name, block(starts(make, gammas)))
    assert res is False and 'not in the last batch norm of the branch' in text

@pytest.mark.parametrize('name, make, gammas', [('resblock',branch,(0,1)), ('bottleneck',squeeze,(0,1,2)),
                                                ('bottleneck',squeeze,(1,2)), ('bottleneck',squeeze,(0,2))])
def test_gamma_0_only_in_the_last(name, make, gammas, capsys):
    res,text = said(capsys, name, block(starts(make, gammas)))
    assert res is False and 'more than the last batch norm' in text

@pytest.mark.parametrize('name, make', [('resblock',branch), ('bottleneck',squeeze)])
def test_a_last_kernel_of_zeros_is_not_gamma_0(name, make, capsys):
    res,text = said(capsys, name, block(starts(make, kernel=-1)))
    assert res is False and 'the last convolution starts at 0' in text

# --- a batch of one, and a picture that is no square ------------------------------------------------------------------
class Squeezed(nn.Module):
    def __init__(self, n_out, block=fcn_block, widths=(16,32), c_in=3):
        super().__init__()
        *body,self.pool,_,self.head = appended(n_out, block, widths, c_in)
        self.body = nn.Sequential(*body)
    def forward(self, x): return self.head(self.pool(self.body(x)).squeeze())
class SqueezedRes(Squeezed):
    def __init__(self, *args):
        nn.Module.__init__(self)
        *body,self.pool,_,self.head = net_of(*args)
        self.body = nn.Sequential(*body)

@pytest.mark.parametrize('name, answer', [
    ('fully_conv', Squeezed), ('resnet', SqueezedRes), ('grad_cam', lambda *a: cam_of()(*a).squeeze()),
    ('conv1x1', lambda x,w: F.conv2d(x, w[:,:,None,None]).squeeze()), ('as_product', lambda *a: unfolded(*a).squeeze()),
    ('shortcut', lambda *a: nn.Sequential(around(*a), type('Last', (nn.Module,), dict(forward=lambda self,x: x.squeeze()))())),
    ('pad_channels', lambda x,nf,s: F.pad(x[...,::s,::s], (0,0,0,0,0,nf-x.shape[1])).squeeze())])
def test_a_batch_of_one(name, answer, capsys):
    res,text = said(capsys, name, answer)
    assert res is False and 'not for a batch of one' in text

def of_a_square(x, w, s, p):
    n = (x.shape[2]+2*p-w.shape[2])//s + 1
    return (w.flatten(1) @ F.unfold(x, w.shape[2], padding=p, stride=s)).view(len(x), len(w), n, n)
@pytest.mark.parametrize('name, answer', [
    ('conv1x1', lambda x,w: (w @ x.flatten(2)).view(len(x), -1, x.shape[2], x.shape[2])), ('as_product', of_a_square),
    ('pad_channels', lambda x,nf,s: torch.cat([x[...,::s,::s], torch.zeros(len(x), nf-x.shape[1], *[-(-x.shape[2]//s)]*2)], 1)),
    ('fully_conv', lambda *a: nn.Sequential(*appended(*a)[:-3], type('Mean', (nn.Module,), dict(
        forward=lambda self,x: x.sum((2,3))/x.shape[2]**2))(), appended(*a)[-1]))])
def test_a_square_is_assumed(name, answer, capsys):
    res,text = said(capsys, name, answer)
    assert res is False and 'height and width are equal, and not where they differ' in text

def test_a_square_is_assumed_elsewhere(capsys):
    for name,*answer in [('as_product', lambda *a: (lambda y: y.flatten(2).unflatten(2, (math.isqrt(y[0,0].numel()), -1)))(unfolded(*a))),
                         ('pad_crop', lambda x,pad: cropped(x, pad)[...,:4])]:
        res,text = said(capsys, name, *answer)
        assert res is False and 'a square is assumed' in text
    assert 'the other side: the photo is 200 high' in said(capsys, 'map_size', 7, 7)[1]

# --- what kind of thing an answer is ----------------------------------------------------------------------------------
@pytest.mark.parametrize('name, answer', [('fully_conv', lambda *a: [*appended(*a)]), ('resnet', lambda *a: [*net_of(*a)]),
                                          ('shortcut', lambda ni,nf,s: [*around(ni, nf, s), nn.Identity()])])
def test_a_list_is_no_module(name, answer, capsys):
    res,text = said(capsys, name, answer)
    assert res is False and 'came a list: `nn.Sequential(*layers)` is one' in text

def in_numpy(name):
    "An answer that gives NumPy's arrays"
    answers = answers_of(name)
    def numpy(o): return o.detach().numpy() if isinstance(o, Tensor) else [*map(numpy, o)] if isinstance(o, (list,tuple)) else o
    return [lambda *a, f=f: numpy(f(*a)) for f in answers]
@pytest.mark.parametrize('name', ['conv1x1','pad_channels','pad_crop','normalise','mixup','grad_cam','filter_normal','as_product',
                                  'cross_entropy','top_k'])
def test_numpy_will_do(name, capsys):
    assert said(capsys, name, *in_numpy(name))[0] is True

def test_one_number_in_an_array_will_do(capsys):
    for train in (np.array([73]), np.array(73), np.int64(73), torch.tensor([73])): assert said(capsys, 'batches', train, 31)[0] is True
    assert 'nan is no number' in said(capsys, 'batches', math.nan, 31)[1]

@pytest.mark.parametrize('result', [lambda x: x>0, lambda x: x.to_sparse(), lambda x: x.cfloat()])
@pytest.mark.filterwarnings('ignore:Casting complex')
def test_an_odd_tensor_is_no_crash(result, capsys): assert said(capsys, 'conv1x1', lambda x,w: result(x))[0] is False

def keyword_only(*names):
    scope = {}
    exec(f"def f(*, {', '.join(names)}): return 1", scope)
    return scope['f']
@pytest.mark.parametrize('name, names', [('conv1x1',('x','w')), ('stage',('block','ni','nf','n','stride')), ('silence',('net',)),
                                         ('resblock',('ni','nf','stride')), ('deepen',('net','n'))])
def test_by_position(name, names, capsys):
    res,text = said(capsys, name, keyword_only(*names))
    assert res is False and f'by position, with {len(names)} argument' in text and 'take the `*` out' in text

def test_a_module_that_is_not_one_yet(capsys):
    class Bare(nn.Module):
        def __init__(self, ni, nf, stride=1): self.n = 1
    assert '`super().__init__()` is missing' in said(capsys, 'resblock', Bare)[1]
    assert 'SystemExit' in said(capsys, 'conv1x1', lambda x,w: sys.exit())[1]

# --- words ------------------------------------------------------------------------------------------------------------
def no_bias(net):
    net[-1] = nn.Linear(net[-1].in_features, net[-1].out_features, bias=False)
    return net
def of_conv(lin, c, side):
    conv = nn.Conv2d(c, lin.out_features, side)
    conv.weight.data = lin.weight.data.view(-1, c, side, side)
    return conv
def returned(change):
    def f(net):
        net = deepcopy(net)
        change(net)
        return net
    return f
class Listed(nn.Module):
    "Its parts are in a plain list"
    def __init__(self, *args):
        super().__init__()
        self.parts = [*self.make(*args)]
    def forward(self, x):
        for o in self.parts: x = o(x)
        return x
def listed(f): return type('Listed', (Listed,), dict(make=lambda self,*a: f(*a)))
class Planes(nn.Module):
    "As torchvision counts"
    expansion = 4
    def __init__(self, ni, planes, stride=1):
        super().__init__()
        self.branch,self.around = squeeze(ni, 4*planes, stride),around(ni, 4*planes, stride)
    def forward(self, x): return F.relu(self.branch(x)+self.around(x))
class Unused(block()):
    def forward(self, x): return F.relu(self.branch[4](self.branch[1](self.branch[0](x))) + self.around(x))
class Dropped(block()):
    def forward(self, x):
        a,b,c,d,e = self.branch
        y = c(b(a(x)))
        e(d(y))
        return F.relu(y+self.around(x))
def group_norms(ni, nf, stride):
    return nn.Sequential(*[nn.GroupNorm(1, o.num_features) if isinstance(o, nn.BatchNorm2d) else o for o in branch(ni, nf, stride)])
def a_leaf(conv, bn, k): conv.weight[0] *= k
def no_leaf(body, head, x, classes):
    grid = body(x)
    head(grid)[range(len(x)),classes].sum().backward()
    return (grid.grad.mean((2,3), keepdim=True)*grid).sum(1).relu()

words = [
    ('the linear layer has no bias', 'fully_conv', lambda *a: no_bias(appended(*a))),
    ('the linear layer has no bias', 'resnet', lambda *a: no_bias(net_of(*a))),
    ('the bias is drawn at random', 'as_conv', of_conv),
    ("so PyTorch's `OneCycleLR` counts", 'one_cycle', lambda t,lr,pct=.25,div=25.,end=1e5: with_cosines(t, lr, pct, div, div*end)),
    ("the defaults are those of PyTorch's", 'one_cycle', lambda t,lr,pct=.3,div=25.,end=1e4: with_cosines(t, lr, pct, div, end)),
    ('you changed a copy, and returned it', 'silence', returned(by_convs)),
    ('is it a copy that you change?', 'silence', lambda net: by_convs(deepcopy(net))),
    *[('along one axis', 'filter_normal', directions(lambda w,d,o=o: d/d.norm(dim=o, keepdim=True)*w.norm(dim=o, keepdim=True)))
      for o in (1,0,-1)],
    *[('axes 2 and 3', 'grad_cam', cam_of(weigh=lambda g,a,o=o: g.mean(o, keepdim=True))) for o in ((1,2),(0,2,3),1)],
    ('the classes are axis 1', 'cross_entropy', lambda s,y: (s.logsumexp(0)-s[range(len(y)),y]).mean()),
    *[('takes all the classes', 'cross_entropy', f) for f in
      (lambda s,y: -s.log_softmax(1)[:,y].mean(), lambda s,y: (s.logsumexp(1)-s[:,y]).mean())],
    *[('plain list', name, listed(f)) for name,f in dict(stem=stem_of, fully_conv=appended, resnet=net_of).items()],
    *[('the max-pool is another', 'stem', partial(stem_of, pool=partial(nn.MaxPool2d, *o))) for o in
      ((2,), (3,), (2,1), (3,1,1), (5,2,2), (3,4,1))],
    ('`expansion` twice', 'resnet', lambda n,l,b,c=3: net_of(n, l, b, c, expansion=b.expansion**2)),
    *[("torchvision's `planes`", name, Planes) for name in ('bottleneck','stride_first')],
    ('`branch.3` is made and not used', 'resblock', Unused), ('`branch.3` is made and not used', 'resblock', Dropped),
    ('its norm is GroupNorm', 'resblock', block(group_norms)), ('`torch.no_grad()`', 'one_filter', a_leaf),
    ('`.detach().requires_grad_()`', 'grad_cam', no_leaf),
    ('wrap it in `nn.Parameter(...)`', 'as_conv', lambda lin,c,side: setattr(nn.Conv2d(c, 5, side), 'weight', lin.weight.data)),
]
@pytest.mark.filterwarnings('ignore:The .grad attribute')   # of an answer that asks for it where there is none
@pytest.mark.parametrize('part, name, answer', words, ids=[f'{o[1]}-{i}' for i,o in enumerate(words)])
def test_words(part, name, answer, capsys):
    res,text = said(capsys, name, answer)
    assert res is False and part in text, text

class Loud(block()):
    def forward(self, x):
        print('shape', x.shape)
        print(x)
        return super().forward(x)
def test_print_is_one_line(capsys):
    res,text = said(capsys, 'resblock', Loud)
    assert res is True and text.count('\n')==2 and 'your code printed' in text and 'shape torch.Size' in text
    assert said(capsys, 'conv1x1', lambda x,w: print('once'))[1].endswith('(your code printed 1 line: once)\n')

@pytest.mark.parametrize('name, answers, named, words', [
    ('first_block', (), {}, "'MyBlock'. Hand in MyBlock"), ('normalise', (noop,), {}, 'Hand in my_normalise and my_denormalise'),
    ('batches', (), dict(train=73), "'valid'. Hand in train and valid"), ('batches', (73,31,2), {}, 'too many positional')])
def test_too_few_or_too_many_answers(name, answers, named, words, capsys):
    "A line, and no traceback"
    assert getattr(check, name)(*answers, **named) is False and words in capsys.readouterr().out
