"""Answers to the exercises, right ones and wrong ones, with a few words that the check should say of each wrong one.
They are written as learners write them: with other names and means than the library's, a wrong one with a mistake"""
from fastai.vision.all import *
from resnet_course.fcn import fcn_block, get_fcn
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18, resnet_stem
from resnet_course.bottleneck import Bottleneck

rights,wrongs = [],[]   # (exercise, answers), (exercise, words, answers); answers by position or by name

def right(exercise, *answers, **named):
    "Note a right answer; without one, a decorator that does"
    if not (answers or named): return lambda f: right(exercise, f) or f
    rights.append((exercise, answers, named))

def wrong(exercise, words, *answers, **named):
    "Note a wrong answer; without one, a decorator that does"
    if not (answers or named): return lambda f: wrong(exercise, words, f) or f
    wrongs.append((exercise, words, answers, named))

def answers_of(exercise):
    "The first right answer that is noted"
    return first(o[1] for o in rights if o[0]==exercise)

# 00: how many batches

right('batches', train=73, valid=31)
right('batches', train=9469//128, valid=tensor(3925/128).ceil())
wrong('batches', 'train: the last batch is incomplete', train=74, valid=31)
wrong('batches', 'part of a batch: round down', train=9469/128, valid=31)
wrong('batches', 'valid: validation keeps', train=73, valid=30)
wrong('batches', 'has fewer photos', train=73, valid=3925/128)
wrong('batches', 'train: 147 is too large by a factor of 2.01', train=147, valid=31)
wrong('batches', 'train: 31 is too small', train=31, valid=73)
wrong('batches', "expected a number, came 'many'", train=73, valid='many')
wrong('batches', 'not above zero', train=73, valid=-31)

# 00: count the photos

@right('count_photos')
def with_glob(path):
    res = {}
    for split in ('train','val'):
        for f in (path/split).glob('*/*'):
            if f.suffix.lower() in image_extensions:
                classes = res.setdefault(split, {})
                classes[f.parent.name] = classes.get(f.parent.name, 0) + 1
    return res
@right('count_photos')
def by_folder(path): return {s: {d.name: len(get_image_files(d)) for d in (path/s).ls()} for s in ('train','val')}
@right('count_photos')
def with_counters(path): return {s: Counter(get_image_files(path/s).map(parent_label)) for s in ('train','val')}

@wrong('count_photos', 'some of them are no photos')
def every_file(path): return {s: {d.name: len(d.ls()) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', "not all names end in '.jpg'")
def jpg_only(path): return {s: {d.name: len(list(d.glob('*.jpg'))) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', "'.JPEG' is a suffix")
def lower_case(path):
    def n(d): return len([f for f in d.ls() if f.suffix in ('.jpg','.jpeg','.png')])
    return {s: {d.name: n(d) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', "'.png' is a suffix")
def no_png(path):
    return {s: {d.name: len([f for f in d.ls() if f.suffix.lower() in ('.jpg','.jpeg')]) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', "'.JPEG' and '.png' are suffixes")
def two_suffixes(path):
    return {s: {d.name: len([f for f in d.ls() if f.suffix in ('.jpg','.jpeg')]) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', 'a dict for each')
def one_dict(path): return dict(Counter(get_image_files(path).map(parent_label)))
@wrong('count_photos', 'number of classes')
def classes(path): return {s: len((path/s).ls()) for s in ('train','val')}
@wrong('count_photos', 'full paths')
def by_path(path): return {s: {d: len(get_image_files(d)) for d in (path/s).ls()} for s in ('train','val')}
@wrong('count_photos', 'the keys are splits')
def by_grandparent(path):
    return {s: dict(Counter(f.parent.parent.name for f in get_image_files(path/s))) for s in ('train','val')}
@wrong('count_photos', 'only the training')
def half_of_it(path): return {'train': by_folder(path)['train']}
@wrong('count_photos', 'FileNotFoundError')
def other_layout(path): return {s: len((path/s).ls()) for s in ('training','validation')}
@wrong('count_photos', "expected {'train'")
def a_list(path): return [by_folder(path)]

# 00: normalise a batch

def column(v): return torch.tensor(v).view(3,1,1)
def normal(xb, mean, std): return (xb-column(mean))/column(std)
def undo(xb, mean, std): return xb*column(std)+column(mean)
def by_channel(xb, mean, std): return torch.stack([(xb[:,c]-mean[c])/std[c] for c in range(3)], 1)
def undo_by_channel(xb, mean, std):
    res = xb.clone()
    for c,(m,s) in enumerate(zip(mean, std)): res[:,c] = res[:,c]*s + m
    return res
right('normalise', normal, undo)
right('normalise', by_channel, undo_by_channel)
right('normalise', lambda xb,m,s: Normalize.from_stats(m, s, cuda=False)(TensorImage(xb)).as_subclass(Tensor), undo)

wrong('normalise', 'along the width', lambda xb,m,s: (xb-tensor(m))/tensor(s), undo)
wrong('normalise', "batch's own", lambda xb,m,s: (xb-xb.mean((0,2,3))[:,None,None])/xb.std((0,2,3))[:,None,None], undo)
wrong('normalise', "batch's own", lambda xb,m,s: (xb-xb.mean())/xb.std(), undo)
wrong('normalise', 'that is the way back', undo, normal)
wrong('normalise', 'divides by the variance', lambda xb,m,s: (xb-column(m))/column(s).pow(2), undo)
wrong('normalise', 'division is missing', lambda xb,m,s: xb-column(m), undo)
wrong('normalise', 'divided first', lambda xb,m,s: xb/column(s)-column(m), undo)
wrong('normalise', 'as it was', lambda xb,m,s: xb, undo)
def in_place(xb, mean, std): return xb.sub_(column(mean)).div_(column(std))
wrong('normalise', 'changes its argument', in_place, undo)
def undo_all(xb, mean, std): return undo(xb, mean, std).mean()
wrong('normalise', 'wrong order', normal, lambda xb,m,s: (xb+column(m))*column(s))
wrong('normalise', 'once more', normal, normal)
wrong('normalise', 'multiplies by the deviation', normal, lambda xb,m,s: xb/column(s)+column(m))
wrong('normalise', 'along the width', normal, lambda xb,m,s: xb*tensor(s)+tensor(m))
wrong('normalise', 'undo_all: expected shape', normal, undo_all)

# 00: smaller crops

right('min_scale', aug_transforms(min_scale=0.1, size=64))
right('min_scale', [*aug_transforms(min_scale=.1, size=(64,64))])
wrong('min_scale', 'not changed yet', aug_transforms(min_scale=0.5, size=64))
wrong('min_scale', 'no random crop', aug_transforms(size=64))
wrong('min_scale', 'no random crop', aug_transforms(min_zoom=.1, size=64))
wrong('min_scale', 'keep `size=64`', aug_transforms(min_scale=.1))
wrong('min_scale', 'keep `size=64`', aug_transforms(min_scale=.1, size=32))
wrong('min_scale', 'Flip is gone', aug_transforms(min_scale=.1, size=64, do_flip=False))
wrong('min_scale', 'a little over 10%', aug_transforms(min_scale=.01, size=64))
wrong('min_scale', 'a little over 10%', aug_transforms(min_scale=.2, size=64))

# 01: top-5 accuracy

@right('top_k')
def by_sorting(inp, targ, k=5):
    best = inp.argsort(dim=1, descending=True)[:,:k]
    return sum(int(y) in row for y,row in zip(targ, best.tolist()))/len(targ)
@right('top_k')
def by_topk(inp, targ, k=5): return (inp.topk(min(k, inp.shape[1]), dim=1)[1]==targ[:,None]).any(1).float().mean()
@right('top_k')
def by_rank(inp, targ, k=5): return ((inp>inp[range(len(targ)),targ][:,None]).sum(1)<k).double().mean()

wrong('top_k', '`k` is not used', lambda inp,targ,k=5: by_rank(inp, targ))
wrong('top_k', 'that is accuracy', lambda inp,targ,k=5: (inp.argmax(1)==targ).float().mean())
wrong('top_k', 'number of hits', lambda inp,targ,k=5: (inp.topk(min(k,12)).indices==targ[:,None]).sum().float())
wrong('top_k', 'percent', lambda inp,targ,k=5: 100*by_topk(inp, targ, k))
wrong('top_k', 'one for each row', lambda inp,targ,k=5: (inp.topk(min(k,12)).indices==targ[:,None]).sum(1).float())
wrong('top_k', 'k lowest', lambda inp,targ,k=5: by_sorting(-inp, targ, k))
wrong('top_k', 'divided by k as well', lambda inp,targ,k=5: (inp.topk(min(k,12)).indices==targ[:,None]).float().mean()
      if k<12 else by_topk(inp, targ, k)/k)
wrong('top_k', '`min(k, ...)`',   # on a line of its own: a refusal may quote the line that stops
      lambda inp,targ,k=5: (inp.topk(k).indices==targ[:,None]).any(1).float().mean())
wrong('top_k', '`targ[:,None]`',
      lambda inp,targ,k=5: (inp.topk(min(k,12)).indices==targ).any(1).float().mean())
wrong('top_k', 'one guess too many',
      lambda inp,targ,k=5: ((inp>inp.gather(1, targ[:,None])).sum(1)<=k).float().mean())
wrong('top_k', 'expected', lambda inp,targ,k=5: by_topk(inp.softmax(0), targ, k))

# 01: one cycle

@right('one_cycle')
def with_cosines(t, lr_max, pct=.25, div=25., div_final=1e5):
    up = t<pct
    a,b,t = (lr_max/div, lr_max, t/pct) if up else (lr_max, lr_max/div_final, (t-pct)/(1-pct))
    return a + (b-a)*(1-math.cos(math.pi*t))/2
@right('one_cycle')
def with_fastai(t, lr_max, pct=.25, div=25., div_final=1e5):
    return combine_scheds([pct,1-pct], [SchedCos(lr_max/div, lr_max), SchedCos(lr_max, lr_max/div_final)])(t)

wrong('one_cycle', 'straight lines', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      lr_max/div + (lr_max-lr_max/div)*t/pct if t<pct else lr_max + (lr_max/div_final-lr_max)*(t-pct)/(1-pct))
wrong('one_cycle', 'peak is in the middle', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      with_cosines(t, lr_max, .5, div, div_final))
wrong('one_cycle', 'starts at 0', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      lr_max*(1-math.cos(math.pi*t/pct))/2 if t<pct else with_cosines(t, lr_max, pct, div, div_final))
wrong('one_cycle', 'ends where it started', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      with_cosines(t, lr_max, pct, div, div))
wrong('one_cycle', 'ends at 0', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      with_cosines(t, lr_max, pct, div) if t<pct else lr_max*(1+math.cos(math.pi*(t-pct)/(1-pct)))/2)
wrong('one_cycle', 'warm-up is missing', lambda t,lr_max,pct=.25,div=25.,div_final=1e5:
      lr_max/div_final + (lr_max-lr_max/div_final)*(1+math.cos(math.pi*t))/2)
wrong('one_cycle', 'only their defaults', lambda t,lr_max,pct=.25,div=25.,div_final=1e5: with_cosines(t, lr_max, pct))
wrong('one_cycle', 'warm-up is missing', lambda t,lr_max,pct=.25,div=25.,div_final=1e5: lr_max)
def twice(t, lr_max, *rest): return with_cosines(t, 2*lr_max, *rest)
wrong('one_cycle', 'twice: expected 0.00012, came 0.00024', twice)

# 01: cross-entropy from scores

@right('cross_entropy')
def with_logsumexp(scores, targ): return (scores.logsumexp(1) - scores[torch.arange(len(targ)),targ]).mean()
@right('cross_entropy')
def largest_off(scores, targ):
    s = scores - scores.max(1, keepdim=True).values
    return -(s - s.exp().sum(1, keepdim=True).log()).gather(1, targ[:,None]).sum()/len(targ)
@right('cross_entropy')
def with_nll(scores, targ): return F.nll_loss(F.log_softmax(scores, dim=1), targ)

@right('cross_entropy')
def with_numpy(scores, targ):
    s = scores.numpy()
    s = s - s.max(1, keepdims=True)
    return (np.log(np.exp(s).sum(1)) - s[np.arange(len(s)),targ.numpy()]).mean()   # an np.float32

wrong('cross_entropy', 'softmax came before', lambda s,y: with_logsumexp(s.softmax(1), y))
wrong('cross_entropy', 'overflow in `exp`',
      lambda s,y: -(s.exp()/s.exp().sum(1, keepdim=True)).log()[range(len(y)),y].mean())
wrong('cross_entropy', 'rounds to 0, and its logarithm', lambda s,y: -s.softmax(1)[range(len(y)),y].log().mean())
wrong('cross_entropy', "PyTorch's cross-entropy is in it", lambda s,y: F.cross_entropy(s, y))
wrong('cross_entropy', 'the sign', lambda s,y: s.log_softmax(1)[range(len(y)),y].mean())
wrong('cross_entropy', 'came the sum', lambda s,y: F.nll_loss(s.log_softmax(1), y, reduction='sum'))
wrong('cross_entropy', 'one for each row', lambda s,y: -s.log_softmax(1)[range(len(y)),y])
wrong('cross_entropy', 'classes are axis 1', lambda s,y: F.nll_loss(s.log_softmax(0), y))
wrong('cross_entropy', 'over all classes', lambda s,y: -s.log_softmax(1).sum()/s.numel())
wrong('cross_entropy', 'the logarithm', lambda s,y: -s.softmax(1).gather(1, y[:,None]).mean())
wrong('cross_entropy', 'what it has to beat', lambda s,y: -s.gather(1, y[:,None]).mean())
wrong('cross_entropy', 'came [', lambda s,y: with_logsumexp(s, y)[None])
wrong('cross_entropy', 'came', lambda s,y: with_logsumexp(s, y)/math.log(2))
def subtracts(scores, targ):
    scores -= scores.max(1, keepdim=True).values
    return with_logsumexp(scores, targ)
wrong('cross_entropy', 'changes its argument', subtracts)

# 02: the fully convolutional net

@right('fully_conv')
def appended(n_out, block=fcn_block, widths=(16,32,64,128,256), c_in=3):
    layers = []
    for w in widths:
        layers.append(block(c_in, w))
        c_in = w
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, n_out))
@right('fully_conv')
class HeadFirst(nn.Module):
    def __init__(self, n_out, block=fcn_block, widths=(16,32,64,128,256), c_in=3):
        super().__init__()
        self.head = nn.Linear(widths[-1], n_out)
        self.body = nn.ModuleList(block(*o) for o in zip([c_in, *widths[:-1]], widths))
    def forward(self, x):
        for b in self.body: x = b(x)
        return self.head(x.mean((2,3)))

def net_with(*head, block=None):
    "A wrong net: other layers after the blocks"
    def net(n_out, blk=fcn_block, widths=(16,32,64,128,256), c_in=3):
        body = appended(n_out, block or blk, widths, c_in)[:-3]
        return nn.Sequential(*body, *[o(widths[-1], n_out) for o in head])
    return net
pool,flat = lambda ni,n: nn.AdaptiveAvgPool2d(1),lambda ni,n: nn.Flatten()
wrong('fully_conv', 'head is flattened', net_with(flat, lambda ni,n: nn.Linear(ni*4*4, n)))
wrong('fully_conv', 'mat1 and mat2', net_with(flat, nn.Linear))
wrong('fully_conv', '3 channels are built in', lambda n,block,widths,c: appended(n, block, widths))
wrong('fully_conv', '10 classes are built in', lambda n,block,widths,c: appended(10, block, widths, c))
wrong('fully_conv', 'fixed number', net_with(pool, flat, lambda ni,n: nn.Linear(256, n)))
wrong('fully_conv', '`block` is not used', net_with(pool, flat, nn.Linear, block=fcn_block))
wrong('fully_conv', '`widths` is not used', lambda n,block,widths,c: appended(n, block, c_in=c))
wrong('fully_conv', 'the last width', lambda n,block,widths,c: appended(n, block, widths[:-1], c))
wrong('fully_conv', 'a softmax', net_with(pool, flat, nn.Linear, lambda ni,n: nn.Softmax(dim=-1)))
wrong('fully_conv', 'a ReLU at the end', net_with(pool, flat, nn.Linear, lambda ni,n: nn.ReLU()))
wrong('fully_conv', 'the maximum', net_with(lambda ni,n: nn.AdaptiveMaxPool2d(1), flat, nn.Linear))
wrong('fully_conv', 'expected shape (2, 7), came (2, 7, 1, 1)', net_with(pool, lambda ni,n: nn.Conv2d(ni, n, 1)))
wrong('fully_conv', 'that is the one from resnet_course.fcn', get_fcn)
wrong('fully_conv', 'TypeError', lambda n_out: appended(n_out))

# 02: a sixth block

n = 3*3*256*512
right('sixth_block', params=1_179_648, macs=4_718_592)
right('sixth_block', params=9*256*512., macs=9*256*512*(4//2)**2)
for words,v in {'the kernel is missing':n//9, 'a bias':n+512, '256 come in':2*n, 'the fifth block':n//4,
                'for the convolution alone':n+1024, 'too large by a factor of 3':3*n}.items():
    wrong('sixth_block', words, params=v, macs=4*n)
for words,v in {'on the grid that comes in':16*n, 'for one place':n, 'stride 2 halves':8*n,
                'grid of the picture':n*128**2, 'the kernel is missing':4*n//9,
                'too small by a factor of 2':2*n}.items():
    wrong('sixth_block', words, params=n, macs=v)

# 02: a linear layer as a convolution

@right('as_conv')
def reshaped(linear, c, side):
    conv = nn.Conv2d(c, linear.out_features, side)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.reshape(-1, c, side, side))
        conv.bias.copy_(linear.bias)
    return conv
@right('as_conv')
def functional(linear, c, side): return lambda x: F.conv2d(x, linear.weight.view(-1,c,side,side), linear.bias)

def conv_of(weight, bias=True, **kw): return lambda lin,c,side: lambda x: F.conv2d(x, weight(lin.weight, c, side),
                                                                                  lin.bias if bias else None, **kw)
def plain_view(w, c, n): return w.view(-1,c,n,n)
wrong('as_conv', 'RuntimeError', lambda lin,c,side: lambda x: F.conv2d(x, lin.weight.view(-1,3,4,4), lin.bias))
wrong('as_conv', 'expected shape (2, 5, 3, 5), came shape (2, 5, 1, 1)',
      lambda lin,c,side: lambda x: F.conv2d(x, plain_view(lin.weight, c, side), lin.bias).mean((2,3), keepdim=True))
wrong('as_conv', 'another order', conv_of(lambda w,c,n: w.view(-1,n,n,c).permute(0,3,1,2)))
wrong('as_conv', 'height and width', conv_of(lambda w,c,n: w.view(-1,c,n,n).mT))
wrong('as_conv', 'padding', conv_of(plain_view, padding=1))
wrong('as_conv', 'bias of the linear layer', conv_of(plain_view, bias=False))
wrong('as_conv', 'stops with', lambda lin,c,side: nn.Conv2d(c, 5, 1)(lin))
wrong('as_conv', 'weights of its own', lambda lin,c,side: nn.Conv2d(c, lin.out_features, 1))
wrong('as_conv', 'expected shape (2, 5, 1, 1), came shape (2, 5, 4, 4)',
      conv_of(lambda w,c,n: plain_view(w,c,n)[...,:1,:1]))
wrong('as_conv', 'weights of its own', lambda lin,c,side: nn.Conv2d(c, lin.out_features, side))
wrong('as_conv', 'a stride', conv_of(plain_view, stride=4))
wrong('as_conv', 'as it was', lambda lin,c,side: nn.Sequential(nn.Flatten(), lin, nn.Unflatten(1, (-1,1,1))))

# 03: the 1x1 convolution

right('conv1x1', lambda x,w: torch.einsum('bihw,oi->bohw', x, w))
right('conv1x1', lambda x,w: F.conv2d(x, w[:,:,None,None]))
right('conv1x1', lambda x,w: (x.permute(0,2,3,1) @ w.T).permute(0,3,1,2))
for words,how in {'the wrong way round':'bihw,io->bohw', 'height and width':'bihw,oi->bowh',
                  'channels came out last':'bihw,oi->bhwo', 'batch and channels':'bihw,oi->obhw',
                  'pixels are added up':'bihw,oi->bo', 'only at its own':'bihw,ii->bihw'}.items():
    wrong('conv1x1', words, lambda x,w,how=how: torch.einsum(how, x, w))
wrong('conv1x1', 'came the mean', lambda x,w: F.conv2d(x, w[:,:,None,None])/w.shape[1])
wrong('conv1x1', 'off by up to', lambda x,w: F.conv2d(x, w[:,:,None,None]).relu())
wrong('conv1x1', 'RuntimeError', lambda x,w: w @ x)
wrong('conv1x1', 'RuntimeError', lambda x,w: (w @ x.flatten(2)).view(x.shape))

# 03: the shortcut

def around(ni, nf, stride, pool=partial(nn.AvgPool2d, ceil_mode=True), ks=1, norm=nn.BatchNorm2d, act=None, bias=False,
           pool_last=False, conv_stride=1, always=False):
    "The shortcut, and what can be wrong with it"
    pools = [pool(stride)] if pool and stride>1 else []
    convs = [nn.Conv2d(ni, nf, ks, conv_stride, ks//2, bias=bias)] if always or ni!=nf else []
    if convs and norm: convs.append(norm(nf))
    if convs and act: convs.append(act())
    return nn.Sequential(*(convs+pools if pool_last else pools+convs))
@right('shortcut')
class Around(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.stride = stride
        if ni!=nf: self.norm,self.weight = nn.BatchNorm2d(nf),nn.Parameter(torch.randn(nf, ni))
    def forward(self, x):
        x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.norm(torch.einsum('bihw,oi->bohw', x, self.weight)) if hasattr(self, 'norm') else x
right('shortcut', around)
right('shortcut', lambda ni,nf,stride: nn.Sequential(
    nn.Identity() if stride==1 else nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False),
    nn.Identity() if ni==nf else nn.Sequential(nn.Conv2d(ni, nf, 1, bias=False), nn.BatchNorm2d(nf))))

def pool_between(ni, nf, stride):
    "The values are right, at several times the work"
    m = around(ni, nf, 1)
    if stride>1: m.insert(min(1, len(m)), nn.AvgPool2d(stride, ceil_mode=True))
    return m
def strided(ni, nf, stride):
    if stride==1 and ni==nf: return nn.Identity()
    return nn.Sequential(nn.Conv2d(ni, nf, 1, stride, bias=False), nn.BatchNorm2d(nf))
def under_the_stride(ni, nf, stride):
    "No projection where the width changes alone, as in the first block of ResNet-50"
    m = nn.Sequential()
    if stride>1:
        m.append(nn.AvgPool2d(stride, ceil_mode=True))
        if ni!=nf: m.append(around(ni, nf, 1))
    return m
around_wrongs = {
    'pool comes after': partial(around, pool_last=True), 'skips pixels': strided,
    '`ceil_mode=True`': partial(around, pool=nn.AvgPool2d),
    'has to take the stride': partial(around, pool=lambda s: nn.AvgPool2d(2, ceil_mode=True)),
    'maximum is pooled': partial(around, pool=partial(nn.MaxPool2d, ceil_mode=True)),
    'what is negative is lost': partial(around, act=nn.ReLU), 'where none is needed': partial(around, always=True),
    'has a bias': partial(around, bias=True), 'batch norm is missing': partial(around, norm=None),
    'expected 1x1': partial(around, ks=3)}
for words,make in around_wrongs.items(): wrong('shortcut', words, make)
wrong('shortcut', 'times the arithmetic', pool_between)
wrong('shortcut', 'expected shape', lambda ni,nf,stride: nn.Identity())
wrong('shortcut', 'expected shape', under_the_stride)
wrong('shortcut', 'to give a module', lambda ni,nf,stride: 5)
wrong('shortcut', 'hand in the class', around(4, 8, 2))
wrong('shortcut', 'should pass its input on', lambda ni,nf,stride: nn.Sequential(around(ni, nf, stride), nn.Tanh()))
wrong('shortcut', 'off by up to', partial(around, act=nn.Tanh))

# 03: ResBlock

def branch(ni, nf, stride, strides=None, mid=nn.ReLU, bias=False, gamma=0, mid_norm=nn.BatchNorm2d, momentum=.1):
    "The two convolutions, and what can be wrong with them"
    a,b = strides(stride) if strides else (stride,1)
    last = nn.BatchNorm2d(nf, momentum=momentum)
    nn.init.constant_(last.weight, gamma)
    between = [mid_norm(nf), mid()] if mid_norm else [mid()]
    return nn.Sequential(nn.Conv2d(ni, nf, 3, a, 1, bias=bias), *between, nn.Conv2d(nf, nf, 3, b, 1, bias=bias), last)

def block(branch=branch, around=around, join=lambda convs,x: (convs+x).relu()):
    "A class of a block made from parts"
    class Block(nn.Module):
        expansion = 4   # as lesson 05 wants it; lesson 03 does not ask
        def __init__(self, ni, nf, stride=1):
            super().__init__()
            self.branch,self.around = branch(ni, nf, stride),around(ni, nf, stride)
        def forward(self, x): return join(self.branch(x), self.around(x))
    return Block

def put_together_wrongs(branch, last):
    "Words and blocks whose branch is right and is put together wrongly; `last` is a branch that starts at gamma 1"
    def also(*more): return lambda *a: nn.Sequential(branch(*a), *more)
    return {
        'no ReLU after the sum': block(branch, join=lambda c,x: c+x),
        'the output can only grow': block(branch, join=lambda c,x: x+c.relu()),
        'a second ReLU': block(also(nn.ReLU())), 'shortcut is missing': block(branch, join=lambda c,x: c.relu()),
        'at gamma 1': block(last),
        'is subtracted': block(branch, join=lambda c,x: (c-x).relu()),
        'gradient is not': block(branch, join=lambda c,x: (c+x.detach()).relu()),
        'right in train mode, and not in eval mode': block(also(AlwaysTrain())),
        'off by up to': block(branch, join=lambda c,x: F.leaky_relu(c+x, .1)),
        'must match the size of tensor b': block(branch, under_the_stride),
        **{words: block(branch, make) for words,make in around_wrongs.items()}}

class AlwaysTrain(nn.Module):
    "Noise of no size in train mode, half in eval mode"
    def forward(self, x): return x if self.training else x/2

right('resblock', block())
@right('resblock')
class ShortcutFirst(nn.Module):
    "Registered in another order, and written with functions"
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        if ni!=nf: self.short = nn.Linear(ni, nf, bias=False)
        self.bns = nn.ModuleList(nn.BatchNorm2d(nf) for _ in range(3 if ni!=nf else 2))
        self.w2,self.w1 = (nn.Parameter(torch.randn(nf, n, 3, 3)/n) for n in (nf,ni))
        self.stride = stride
        nn.init.zeros_(self.bns[0].weight)
    def forward(self, x):
        out = self.bns[1](F.conv2d(x, self.w1, padding=1, stride=self.stride)).clamp(min=0)
        out = self.bns[0](F.conv2d(out, self.w2, padding=1))
        if self.stride>1: x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if hasattr(self, 'short'): x = self.bns[2](self.short(x.permute(0,2,3,1)).permute(0,3,1,2))
        return (out+x).clamp(min=0)
@right('resblock')
class WithConvLayer(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.a,self.b = ConvLayer(ni, nf, stride=stride),ConvLayer(nf, nf, act_cls=None, norm_type=NormType.BatchZero)
        self.skip = nn.Sequential()
        if stride!=1: self.skip.append(nn.AvgPool2d(stride, ceil_mode=True))
        if ni!=nf: self.skip.append(ConvLayer(ni, nf, ks=1, act_cls=None))
        self.act = nn.ReLU()
    def forward(self, x): return self.act(self.skip(x) + self.b(self.a(x)))

class InPlace(WithConvLayer):
    "With the ReLU that should not be there, and the sum in place: the backward pass misses what the ReLU had given"
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        self.b = ConvLayer(nf, nf, norm_type=NormType.BatchZero)
    def forward(self, x):
        out = self.b(self.a(x))
        out += self.skip(x)
        return self.act(out)
wrong('resblock', 'your code changes in place', InPlace)
class Misspelt(nn.Module):
    def __init__(self, ni, nf, stride=1): super().__init__()
    def foward(self, x): return x
wrong('resblock', 'there is no `forward`', Misspelt)
class OtherEps(WithConvLayer):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        for o in self.modules():
            if isinstance(o, nn.BatchNorm2d): o.eps = 1e-3
wrong('resblock', 'off by up to 0.0', OtherEps)
wrong('resblock', 'both convolutions have the stride', block(partial(branch, strides=lambda s: (s,s))))
wrong('resblock', 'the second convolution has the stride', block(partial(branch, strides=lambda s: (1,s))))
wrong('resblock', '`stride` is not used', lambda ni,nf,stride: block()(ni, nf))
wrong('resblock', 'of the branch have a bias', block(partial(branch, bias=True)))
wrong('resblock', 'the convolutions have a bias', block(partial(branch, bias=True), partial(around, bias=True)))
wrong('resblock', 'ReLU between', block(partial(branch, mid=nn.Identity)))
wrong('resblock', 'batch norm between', block(partial(branch, mid_norm=None)))
wrong('resblock', 'not in eval mode', block(partial(branch, momentum=.5)))
wrong('resblock', 'off by up to', block(partial(branch, mid=nn.GELU)))
wrong('resblock', "the library's own", lambda ni,nf,stride: nn.Sequential(ResBlock(ni, nf, stride)))
wrong('resblock', 'that is the one from resnet_course.resblock', ResBlock)
wrong('resblock', 'hand in the class', block()(8, 8))
for words,make in put_together_wrongs(branch, partial(branch, gamma=1)).items(): wrong('resblock', words, make)
@wrong('resblock', 'expected 1,184 parameters, came 1,185')
class Scaled(block()):
    "A learned factor at the end of the branch, as some later designs have it"
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x): return (self.scale*self.branch(x) + self.around(x)).relu()
def other_norms(make, **kwargs):
    "The same blocks, with batch norms that lack something"
    def f(ni, nf, stride=1):
        m = make(ni, nf, stride)
        for o in [*m.modules()]:
            for k,v in o.named_children():
                if isinstance(v, nn.BatchNorm2d): setattr(o, k, nn.BatchNorm2d(v.num_features, **kwargs))
        return m
    return f
norm_wrongs = {'has no `bias`':dict(bias=False), 'has no `weight` and no `bias`':dict(affine=False),
               'has no `running_mean` and no `running_var`':dict(track_running_stats=False)}
for words,kw in norm_wrongs.items(): wrong('resblock', words, other_norms(block(), **kw))
@wrong('resblock', 'gradient is not')
class Data(ShortcutFirst):
    def __init__(self, ni, nf, stride=1):
        super().__init__(ni, nf, stride)
        self.w1.requires_grad_(False)
@wrong('resblock', '3 channels, but got 8')
class ThreeChannels(block()):
    def __init__(self, ni, nf, stride=1): super().__init__(3, nf, stride)
@wrong('resblock', '`return self.branch(y)`')
class Misspelt(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.branch = branch(ni, nf, stride)
    def forward(self, x):
        return self.branch(y)
@wrong('resblock', 'expected a tensor, came tuple')
class Tuple(block()):
    def forward(self, x): return super().forward(x),x
@wrong('resblock', 'the number of parameters is right, but they have other shapes')
class OtherShapes(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.blk = block()(ni, nf, stride)
        convs = self.blk.branch
        convs[0] = nn.Conv2d(ni, nf, (9,1), stride, (4,0), bias=False)
    def forward(self, x): return self.blk(x)

# 03: exactly the identity

@right('silence')
def by_convs(net):
    for m in net.modules():
        if isinstance(m, ResBlock):
            nn.init.zeros_(m.branch[-1][1].weight)
            nn.init.zeros_(m.branch[-1][1].bias)
right('silence', by_convs, ResBlock)   # the library's own block is no answer, but what the answer is tried on
@right('silence')
def through_data(net):
    def f(m):
        if isinstance(m, ResBlock):
            for p in m.branch[1][1].parameters(): p.data.zero_()
    return net.apply(f)

def silent(pick):
    "Zeros what `pick` says of each block"
    def f(net):
        for m in net.modules():
            if isinstance(m, ResBlock):
                for p in pick(m): nn.init.zeros_(p)
    return f
wrong('silence', 'they are frozen too', lambda net: [nn.init.zeros_(p).requires_grad_(False) for m in net.modules()
                                                     if isinstance(m, ResBlock) for p in m.branch[-1][1].parameters()])
wrong('silence', 'starts beta at', silent(lambda m: [m.branch[-1][1].weight]))
wrong('silence', 'and gamma is not', silent(lambda m: [m.branch[-1][1].bias]))
wrong('silence', 'no gradient gets to', silent(lambda m: [p for c in m.branch for p in c[1].parameters()]))
wrong('silence', "the shortcut's too", lambda net: [nn.init.zeros_(p) for m in net.modules()
                                                      if isinstance(m, nn.BatchNorm2d) for p in m.parameters()])
wrong('silence', 'only the first block', lambda net: silent(lambda m: m.branch[-1][1].parameters())(net[0]))
wrong('silence', 'only the last block', lambda net: silent(lambda m: m.branch[-1][1].parameters())(net[1][1]))
wrong('silence', 'first batch norm of each branch', silent(lambda m: m.branch[0][1].parameters()))
wrong('silence', 'last convolution is silent', silent(lambda m: [m.branch[-1][0].weight]))
wrong('silence', 'nothing in `net` has changed', lambda net: deepcopy(net))
wrong('silence', 'net.0.branch.1.0.weight: ', silent(lambda m: m.branch[-1].parameters()))
wrong('silence', 'AttributeError', lambda net: net.branch.zero_())

# 04: the stem

def stem_of(*sizes, strides=(2,1), pool=partial(nn.MaxPool2d, 3, 2, 1), ks=3, act=nn.ReLU, norm=nn.BatchNorm2d,
            bias=False, norm_last=False):
    layers = []
    for i,(ni,nf) in enumerate(zip(sizes, sizes[1:])):
        after = ([norm(nf)] if norm else []) + ([act()] if act else [])
        layers += [nn.Conv2d(ni, nf, ks, strides[min(i,1)], ks//2, bias=bias), *(after[::-1] if norm_last else after)]
    return [*layers, pool()] if pool else layers
right('stem', stem_of)
right('stem', lambda *sizes: nn.Sequential(*stem_of(*sizes)))
@right('stem')
class Stem(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, sizes[1:]))
        self.branch = nn.ModuleList(nn.Conv2d(*o, 3, padding=1, bias=False) for o in zip(sizes, sizes[1:]))
        self.branch[0].stride = 2
    def forward(self, x):
        for conv,norm in zip(self.branch, self.norms): x = norm(conv(x)).relu()
        return F.max_pool2d(x, 3, 2, 1)

for words,kw in {'every convolution has stride 2':dict(strides=(2,2)),
                 'no convolution has stride 2':dict(strides=(1,1)), 'at the end is missing':dict(pool=None),
                 'has no padding':dict(pool=partial(nn.MaxPool2d, 3, 2)),
                 'window of the max-pool':dict(pool=partial(nn.MaxPool2d, 2, ceil_mode=True)),
                 'the mean is pooled':dict(pool=partial(nn.AvgPool2d, 3, 2, 1)), 'ReLUs are missing':dict(act=None),
                 'batch norms are missing':dict(norm=None), 'have a bias':dict(bias=True), '7x7':dict(ks=7),
                 'after the ReLU':dict(norm_last=True), 'off by up to':dict(act=nn.SiLU)}.items():
    wrong('stem', words, partial(stem_of, **kw))
wrong('stem', '3 channels are built in', lambda c,*sizes: stem_of(3, *sizes))
wrong('stem', 'last convolution is missing', lambda *sizes: stem_of(*sizes[:-1]))
wrong('stem', 'that is the one from', resnet_stem)
wrong('stem', 'ValueError', lambda *sizes: sizes.index(64))

# 04: a stage

def blocks_of(make): return lambda block,ni,nf,n,stride: nn.Sequential(*[block(*o) for o in make(ni, nf, n, stride)])
right('stage', blocks_of(lambda ni,nf,n,s: [(ni,nf,s)] + [(nf,nf,1)]*(n-1)))
@right('stage')
def list_of_blocks(block, ni, nf, n, stride):
    blocks = [block(ni, nf, stride)]
    while len(blocks)<n: blocks.append(block(nf, nf))
    return blocks
@right('stage')
class Stage(nn.Module):
    def __init__(self, block, ni, nf, n, stride):
        super().__init__()
        self.rest,self.first = nn.ModuleList(block(nf, nf, 1) for _ in range(n-1)),block(ni, nf, stride)
    def forward(self, x):
        x = self.first(x)
        for b in self.rest: x = b(x)
        return x
for words,make in {'every block has the stride':lambda ni,nf,n,s: [(ni,nf,s)] + [(nf,nf,s)]*(n-1),
                   'stride is not used':lambda ni,nf,n,s: [(ni,nf)] + [(nf,nf)]*(n-1),
                   'last block has the stride':lambda ni,nf,n,s: [(ni,nf)] + [(nf,nf)]*(n-2) + [(nf,nf,s)],
                   'every block has `ni` channels in':lambda ni,nf,n,s: [(ni,nf,s)] + [(ni,nf,1)]*(n-1),
                   'width changes in the last':lambda ni,nf,n,s: [(ni,ni,s)] + [(ni,ni,1)]*(n-2) + [(ni,nf,1)],
                   'one block too many':lambda ni,nf,n,s: [(ni,nf,s)] + [(nf,nf,1)]*n,
                   'one block only':lambda ni,nf,n,s: [(ni,nf,s)],
                   'TypeError':lambda ni,nf,n,s: [(ni,nf,s,n)]*n}.items(): wrong('stage', words, blocks_of(make))
@wrong('stage', '`[block]*n`')
def one_object(block, ni, nf, n, stride): return nn.Sequential(block(ni, nf, stride), *[block(nf, nf, 1)]*(n-1))
wrong('stage', '`block` is not used', lambda block,ni,nf,n,stride: list_of_blocks(ResBlock, ni, nf, n, stride))

# 04: ResNet

def net_of(n_out, layers, block, c_in=3, stem=(32,32), first=1, expansion=None, pool=nn.AdaptiveAvgPool2d, width=None,
           end=()):
    w = 64
    parts = stem_of(c_in, *stem, w)
    for i,n in enumerate(layers):
        out = 64*2**i*(expansion or block.expansion)
        parts += list_of_blocks(block, w, out, n, 2 if i else first)
        w = out
    return nn.Sequential(*parts, pool(1), nn.Flatten(), nn.Linear(width or w, n_out), *end)
right('resnet', net_of)
@right('resnet')
class Net(nn.Module):
    def __init__(self, n_out, layers, block, c_in=3):
        super().__init__()
        e = block.expansion
        self.stem = resnet_stem(c_in, 32, 32, 64)
        ins,outs = [64, 64*e, 128*e, 256*e],[64*e, 128*e, 256*e, 512*e]
        self.stages = nn.ModuleList(Stage(block, *o) for o in zip(ins, outs, layers, (1,2,2,2)))
        self.fc = nn.Linear(outs[-1], n_out)
    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages: x = stage(x)
        return self.fc(x.mean((-2,-1)))
for words,kw in {'first stage has stride 2':dict(first=2), '`expansion`':dict(expansion=1),
                 'fixed number':dict(width=512), 'a softmax':dict(end=[nn.Softmax(1)]),
                 'maximum over the last grid':dict(pool=nn.AdaptiveMaxPool2d),
                 'stem has one convolution':dict(stem=()), '64 channels throughout':dict(stem=(64,64)),
                 'off by up to':dict(end=[nn.Tanh()])}.items(): wrong('resnet', words, partial(net_of, **kw))
wrong('resnet', '3 channels are built in', lambda n_out,layers,block,c_in: net_of(n_out, layers, block))
wrong('resnet', '10 classes are built in', lambda n_out,layers,block,c_in: net_of(10, layers, block, c_in))
wrong('resnet', '`layers` is not used', lambda n_out,layers,block,c_in: net_of(n_out, [2,2,2,2], block, c_in))
wrong('resnet', '`block` is not used', lambda n_out,layers,block,c_in: net_of(n_out, layers, block_one, c_in))
class block_one(ResBlock): pass
wrong('resnet', "the library's own", lambda *a: ResNet(*a))
wrong('resnet', 'that is the one from', ResNet)

# 04: from 18 to 34

right('deeper', 10_108_160)
right('deeper', params=sum(n*(2*9*w*w + 4*w) for n,w in zip((1,2,4,1), (64,128,256,512))))
def more(conv, rest, blocks=(1,2,4,1)): return sum(n*(conv*w*w+rest*w) for n,w in zip(blocks, (64,128,256,512)))
for words,n in {'batch norms are missing':more(18,0), 'a block has two convolutions':more(9,2),
                'have no bias':more(18,6), '3x3 is 9':more(6,4), 'kernels are missing':more(2,4),
                'all blocks of ResNet-34':more(18,4,(3,4,6,3)),
                'count them one by one':more(18,4,(1,1,1,1)), 'all parameters of ResNet-34':21_309_034,
                'too small by a factor of 10':1_010_816}.items(): wrong('deeper', words, n)
wrong('deeper', 'a block has two convolutions', more(9, 0))

# 04: the early layers

def narrow_net(n_out, widths=(64,)*4, strides=(1,2,2,2), n=2, width=None):
    w,parts = 64,stem_of(3, 32, 32, 64)
    for out,s in zip(widths, strides):
        parts += list_of_blocks(ResBlock, w, out, n, s)
        w = out
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width or w, n_out))
right('narrow', narrow_net)
@right('narrow')
def replaced(n_out):
    net = resnet18(n_out)
    for i,s in enumerate((1,2,2,2), 1): setattr(net, f'stage{i}', nn.Sequential(ResBlock(64, 64, s), ResBlock(64, 64)))
    net.head[-1] = nn.Linear(64, n_out)
    return net
@right('narrow')
class Named(nn.Module):
    def __init__(self, n_out):
        super().__init__()
        *parts,self.pool,self.flat,self.head = narrow_net(n_out)
        self.stem,self.stages = nn.Sequential(*parts[:4]),nn.Sequential(*parts[4:])
    def forward(self, x): return self.head(self.flat(self.pool(self.stages(self.stem(x)))))
wrong('narrow', 'not changed yet', partial(narrow_net, widths=(64,128,256,512)))
wrong('narrow', 'not changed yet', lambda n_out: resnet18(n_out))
wrong('narrow', 'no stage has stride 2', partial(narrow_net, strides=(1,1,1,1)))
wrong('narrow', 'the first stage has stride 2', partial(narrow_net, strides=(2,2,2,2)))
wrong('narrow', 'one block in each stage', partial(narrow_net, n=1))
wrong('narrow', 'has 512 inputs', partial(narrow_net, width=512))
wrong('narrow', 'last stage is still wider', partial(narrow_net, widths=(64,64,64,512)))
wrong('narrow', 'expected', partial(narrow_net, widths=(32,)*4))

# 05: Bottleneck

def squeeze(ni, nf, stride, inner=None, strides=None, ks=(1,3,1), act=nn.ReLU, bias=False, gamma=0):
    n = inner(ni, nf) if inner else nf//4
    s = strides(stride) if strides else (1,stride,1)
    last = nn.BatchNorm2d(nf)
    nn.init.constant_(last.weight, gamma)
    def conv(ni, nf, i): return nn.Conv2d(ni, nf, ks[i], s[i], ks[i]//2, bias=bias)
    return nn.Sequential(conv(ni,n,0), nn.BatchNorm2d(n), act(), conv(n,n,1), nn.BatchNorm2d(n), act(),
                         conv(n,nf,2), last)
right('bottleneck', block(squeeze))
@right('bottleneck')
class OtherBranch(ResBlock):
    expansion = 4
    @staticmethod
    def conv_branch(ni, nf, stride):
        n = nf//4
        return nn.Sequential(ConvLayer(ni, n, ks=1), ConvLayer(n, n, ks=3, stride=stride),
                             ConvLayer(n, nf, ks=1, act_cls=None, norm_type=NormType.BatchZero))
@right('bottleneck')
class Functional(nn.Module):
    expansion = 4
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        n = nf//4
        self.skip = around(ni, nf, stride)
        self.up,self.down = nn.Linear(n, nf, bias=False),nn.Linear(ni, n, bias=False)
        self.mid = nn.Conv2d(n, n, 3, stride, 1, bias=False)
        self.b3,self.b1,self.b2 = nn.BatchNorm2d(nf),nn.BatchNorm2d(n),nn.BatchNorm2d(n)
        self.b3.weight.data.zero_()
    def forward(self, x):
        def each_pixel(f, x): return f(x.movedim(1,-1)).movedim(-1,1)
        out = F.relu(self.b1(each_pixel(self.down, x)))
        out = F.relu(self.b2(self.mid(out)))
        return F.relu(self.b3(each_pixel(self.up, out)) + self.skip(x))

for words,kw in {'the first 1x1 has the stride':dict(strides=lambda s: (s,1,1)),
                 'the last 1x1 has the stride':dict(strides=lambda s: (1,1,s)),
                 '`ni//4`':dict(inner=lambda ni,nf: ni//4), 'half of `nf`':dict(inner=lambda ni,nf: nf//2),
                 'nothing is squeezed':dict(inner=lambda ni,nf: nf), 'three 3x3':dict(ks=(3,3,3)),
                 'ReLUs inside':dict(act=nn.Identity), 'of the branch have a bias':dict(bias=True),
                 'off by up to':dict(act=nn.Tanh)}.items(): wrong('bottleneck', words, block(partial(squeeze, **kw)))
wrong('bottleneck', '`stride` is not used', lambda ni,nf,stride: block(squeeze)(ni, nf))
wrong('bottleneck', 'the basic block', block())
wrong('bottleneck', "the library's own", type('Mine', (Bottleneck,), {}))
for words,make in put_together_wrongs(squeeze, partial(squeeze, gamma=1)).items(): wrong('bottleneck', words, make)
for words,kw in norm_wrongs.items(): wrong('bottleneck', words, other_norms(block(squeeze), **kw))
@wrong('bottleneck', '`expansion` is 1')
class NoExpansion(OtherBranch): expansion = 1
wrong('bottleneck', '`expansion` is None', lambda *a: OtherBranch(*a))

# 05: how many times cheaper

right('ratio', 1_180_672/70_400)
right('ratio', times=17)
for words,n in {'the other way round: the basic block has more':.0596, 'not three':25.41, 'has two 3x3':8.47,
                'two 1x1 convolutions are missing':32, 'second 1x1':22.15, 'have 256 channels on one side':26.18,
                'at 64 channels':1.051, 'too large':50}.items(): wrong('ratio', words, n)

# 05: the stride of 2015

first_stride = partial(squeeze, strides=lambda s: (s,1,1))
right('stride_first', block(first_stride))
@right('stride_first')
class Early(Bottleneck):
    @staticmethod
    def conv_branch(ni, nf, stride):
        convs = Bottleneck.conv_branch(ni, nf, 1)
        convs[0][0].stride = stride
        return convs
wrong('stride_first', 'not changed yet', block(squeeze))
wrong('stride_first', 'not changed yet', type('Mine', (Bottleneck,), {}))
for words,strides in {'both the first':lambda s: (s,s,1), 'the last 1x1':lambda s: (1,1,s),
                      'no convolution has':lambda s: (1,1,1)}.items():
    wrong('stride_first', words, block(partial(squeeze, strides=strides)))
for words,make in put_together_wrongs(first_stride, partial(first_stride, gamma=1)).items():
    wrong('stride_first', words, make)
