"Answers to the exercises of lessons 06 to 10, as in answers.py"
import shutil, tempfile, torchvision
from io import BytesIO
from fastai.vision.all import *
from itertools import product   # after fastai, which has another
from resnet_course.kit.arrays import PadCrop
from resnet_course.degradation import cifar_resnet, CifarBlock, PadChannels
from resnet_course.classics import copy_weights
from resnet_course.bottleneck import Bottleneck, resnet50
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet
from resnet_course.preact import PreActBlock
from answers import around, block, branch, right, squeeze, strided, wrong

# 06: shortcut A

right('pad_channels', lambda x,nf,stride: F.pad(x[:,:,::stride,::stride], (0,0,0,0,0,nf-x.shape[1])))
@right('pad_channels')
def into_zeros(x, nf, stride):
    bs,ni,h,w = x.shape
    res = torch.zeros(bs, nf, math.ceil(h/stride), math.ceil(w/stride))
    res[:,:ni] = x[..., ::stride, ::stride]
    return res
@right('pad_channels')
def by_a_kernel(x, nf, stride):
    "A 1x1 convolution whose weights are an identity and zeros"
    return F.conv2d(x, torch.eye(nf, x.shape[1])[:,:,None,None], stride=stride)

def padded(pads, pick=lambda x,s: x[..., ::s, ::s]):
    return lambda x,nf,stride: F.pad(pick(x,stride), pads(nf-x.shape[1]))
def last(n): return 0,0,0,0,0,n
for words,pads in {'before the channels; put them':lambda n: (0,0,0,0,n,0), 'beside the picture':lambda n: (0,n),
                   'half of the zeros':lambda n: (0,0,0,0,n//2,n//2), 'below the picture':lambda n: (0,0,0,n),
                   'of zeros are missing':lambda n: (0,0)}.items(): wrong('pad_channels', words, padded(pads))
for words,pick in {'mean of each window':lambda x,s: F.avg_pool2d(x, s, ceil_mode=True),
                   'the mean':lambda x,s: nn.AvgPool2d(s)(x), 'start from the first':lambda x,s: x[..., 1::s, 1::s],
                   'the maximum':lambda x,s: nn.MaxPool2d(s, ceil_mode=True)(x),
                   'always 2':lambda x,s: x[..., ::2, ::2],
                   '`stride` is not used':lambda x,s: x, 'only the height':lambda x,s: x[:,:,::s],
                   'only the width':lambda x,s: x[..., ::s], 'of an odd side':lambda x,s: F.interpolate(
                       x[..., :x.shape[2]//s*s, :x.shape[3]//s*s], (x.shape[2]//s,x.shape[3]//s)),
                   'off by up to':lambda x,s: x[..., ::s, ::s].relu()}.items():
    wrong('pad_channels', words, padded(last, pick))
wrong('pad_channels', 'RuntimeError', lambda x,nf,s: F.pad(x.view(*x.shape[:2], x.shape[2]//s, s, x.shape[3]//s, s)[:,:,:,0,:,0],
                                                           (0,0,0,0,0,nf-x.shape[1])))   # of sides that the stride divides
wrong('pad_channels', 'are copies', lambda x,nf,stride: x.repeat(1, nf//x.shape[1]+1, 1, 1)[:, :nf, ::stride, ::stride])
wrong('pad_channels', '`nf` in all', lambda x,nf,stride: torch.cat(
    [x[..., ::stride, ::stride], torch.zeros(len(x), nf, *x[..., ::stride, ::stride].shape[2:])], 1))
wrong('pad_channels', 'that is the one from resnet_course.degradation', PadChannels)
wrong('pad_channels', 'expected shape', lambda x,nf,stride: nn.Conv2d(x.shape[1], nf, 1)(x))

# 06: pad, crop and mirror

@right('pad_crop')
def one_by_one(x, pad):
    res = []
    for img in x:
        i,j = random.randint(0, 2*pad),random.randint(0, 2*pad)
        img = F.pad(img, [pad]*4)[:, i:i+x.shape[2], j:j+x.shape[3]]
        res.append(img.flip(-1) if random.random()<.5 else img)
    return torch.stack(res)
@right('pad_crop')
def by_unfolding(x, pad):
    bs,_,h,w = x.shape
    windows = F.pad(x, (pad,pad,pad,pad)).unfold(2, h, 1).unfold(3, w, 1)   # (bs, c, rows, columns, h, w)
    i,j = torch.randint(0, 2*pad+1, (2,bs))
    out = windows[torch.arange(bs), :, i, j]
    return torch.where(torch.rand(bs, 1, 1, 1)>.5, out, out.flip(3))
right('pad_crop', lambda x,pad: PadCrop(pad)(TensorImage(x), split_idx=0))

def cropped(x, pad, border=lambda x,p: F.pad(x, [p]*4), place=lambda p: np.random.randint(0, 2*p+1, 2),
            mirror=lambda img: img.flip(2) if np.random.rand()<.5 else img):
    "The right answer, of which parts can be wrong"
    def one(img):
        i,j = place(pad)
        return mirror(border(img[None], pad)[0][:, i:i+x.shape[2], j:j+x.shape[3]])
    return torch.stack(list(map(one, x)))
right('pad_crop', cropped)
def sometimes(p, axes): return lambda img: img.flip(axes) if np.random.rand()<p else img
for words,kw in {
    'stand on their heads':dict(mirror=sometimes(.5, (1,))), 'on their heads':dict(mirror=sometimes(.5, (1,2))),
    'the border is mirrored':dict(border=lambda x,p: F.pad(x, [p]*4, mode='reflect')),
    'repeats the edge':dict(border=lambda x,p: nn.ReplicationPad2d(p)(x)),
    'comes back on the other':dict(border=lambda x,p: nn.CircularPad2d(p)(x)),
    '`pad` is not used':dict(border=lambda x,p: F.pad(x, [4]*4), place=lambda p: np.random.randint(0, 9, 2)),
    'others came':dict(border=lambda x,p: F.pad(x, [p]*4, value=1.)),
    'no picture has moved':dict(place=lambda p: (p,p)),
    'move alike':dict(place=lambda p: (0,p)),
    'nothing moves along the height':dict(place=lambda p: (p,np.random.randint(2*p+1))),
    'nothing moves along the width':dict(place=lambda p: (np.random.randint(2*p+1),p)),
    'along the height 4 places':dict(place=lambda p: np.random.randint(0, 2*p, 2)),
    'pad` 2 there are 5':dict(place=lambda p: np.random.randint(0, p+1, 2)),
    'not equally likely':dict(place=lambda p: np.random.randint(0, p+1, 2)+np.random.randint(0, p+1, 2)),
    'follows from':dict(place=lambda p: (i:=np.random.randint(2*p+1), i)), '0% of the pictures':dict(mirror=noop),
    '100% of the pictures':dict(mirror=lambda img: img.flip(-1)), 'expected half':dict(mirror=sometimes(.1, (2,))),
    'expected shape (100, 3, 4, 5), came shape (100, 3, 5, 4)':dict(mirror=lambda img: img.mT)}.items():
    wrong('pad_crop', words, partial(cropped, **kw))
@wrong('pad_crop', 'move alike')
def batch_at_once(x, pad):
    i,j = torch.randint(2*pad+1, (2,))
    x = F.pad(x, [pad]*4)[..., i:i+x.shape[2], j:j+x.shape[3]]
    return torch.where(torch.rand(len(x), 1, 1, 1)<.5, x, x.flip(3))
@wrong('pad_crop', 'either all of a batch is mirrored')
def mirrored_at_once(x, pad):
    x = cropped(x, pad, mirror=noop)
    return x.flip(-1) if torch.rand(())<.5 else x
wrong('pad_crop', 'changes its argument', lambda x,pad: cropped(x.mul_(2)/2, pad))
wrong('pad_crop', 'others came', lambda x,pad: cropped(x, pad)[torch.randperm(len(x))])
wrong('pad_crop', 'expected shape', lambda x,pad: F.pad(x, [pad]*4))
wrong('pad_crop', 'came a list', lambda x,pad: list(cropped(x, pad)))

# 06: deeper, and the same

def new_block(nf, silent=lambda a,b: [*b.parameters()], around=nn.Identity):
    blk = CifarBlock(nf, nf, 1, around and around())
    for p in silent(*[m for m in blk.modules() if isinstance(m, nn.BatchNorm2d)]): p.data.zero_()
    return blk
@right('deepen')
def longer(net, n, make=new_block, stages=((1,16),(2,32),(3,64)), twin=False):
    net = deepcopy(net)
    for i,nf in stages: net[i] = nn.Sequential(*net[i], *([make(nf)]*n if twin else [make(nf) for _ in range(n)]))
    return net
@right('deepen')
def built_anew(net, n):
    "A net of the depth that it should have, with the weights that there are; the others are silent"
    deep = cifar_resnet(6*(len(net[1])+n)+2)
    deep.load_state_dict(net.state_dict(), strict=False)
    for k,p in deep.named_parameters():
        if k not in net.state_dict() and 'branch.1.1' in k: nn.init.zeros_(p)
    return deep
@right('deepen')
class Around(nn.Module):
    "The new blocks of another class, whose last convolution is 0"
    def __init__(self, net, n):
        super().__init__()
        net = deepcopy(net)
        self.stem,self.head = net[0],nn.Sequential(*net[4:])
        self.stages = nn.ModuleList(nn.Sequential(stage, *[self.blk(nf) for _ in range(n)])
                                    for stage,nf in zip(net[1:4], (16,32,64)))
    def blk(self, nf):
        m = new_block(nf, lambda a,b: [b.bias])
        nn.init.zeros_(m.branch[1][0].weight)
        return m
    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages: x = stage(x)
        return self.head(x)

for words,kw in {'starts beta at 0.001':dict(silent=lambda a,b: [b.weight]),
                 'and gamma is not':dict(silent=lambda a,b: [b.bias]),
                 'both batch norms':dict(silent=lambda a,b: [*a.parameters(), *b.parameters()]),
                 'their last gamma is 1':dict(silent=lambda a,b: []),
                 'the last one should be':dict(silent=lambda a,b: a.parameters()),
                 'no shortcut':dict(around=None)}.items():
    wrong('deepen', words, partial(longer, make=partial(new_block, **kw)))
wrong('deepen', 'whatever `n` is', lambda net,n: longer(net, 1))
wrong('deepen', '`[block]*n`', partial(longer, twin=True))
wrong('deepen', 'only the last stage', partial(longer, stages=[(3,64)]))
wrong('deepen', 'only the first stage', partial(longer, stages=[(1,16)]))
wrong('deepen', 'no parameters have come', lambda net,n: deepcopy(net))
wrong('deepen', 'have come', partial(longer, make=nn.Identity))
wrong('deepen', 'but got 32 channels', partial(longer, stages=[(1,16),(2,16),(3,16)]))
wrong('deepen', 'parameters, as in `cifar_resnet(20)`: expected 269722', lambda net,n: longer(net, 2*n))
wrong('deepen', 'off by up to', lambda net,n: cifar_resnet(8+6*n))
@wrong('deepen', 'has grown')
def grown(net, n):
    for stage,nf in zip(net[1:4], (16,32,64)):
        for _ in range(n): stage.append(new_block(nf))
    return net
wrong('deepen', 'both nets have the same weights', lambda net,n: nn.Sequential(
    net[0], *[nn.Sequential(*net[i], *[new_block(8*2**i) for _ in range(n)]) for i in (1,2,3)], *net[4:]))
@wrong('deepen', 'without a gradient: expected 0, came')
def frozen(net, n):
    deep = longer(net, n)
    for stage in deep[1:4]: stage[1:].requires_grad_(False)
    return deep
wrong('deepen', 'expected 269722, came 0', lambda net,n: nn.Identity())
wrong('deepen', 'tensors without a gradient', lambda net,n: longer(net, n).requires_grad_(False))
@wrong('deepen', 'expected a tensor, came a tuple')
class WithBody(nn.Module):
    def __init__(self, net, n):
        super().__init__()
        self.net = longer(net, n)
    def forward(self, x): return self.net(x),self.net[:4](x)
wrong('deepen', 'expected a net, came a list', lambda net,n: [longer(net, n)])

# 06: a plain identity

def plain(nf, kernel=nn.init.dirac_, gamma=lambda bn: (1+bn.eps)**.5, beta=0., around=None, convs=slice(2)):
    blk = CifarBlock(nf, nf, 1, around)
    for layer in blk.branch[convs]:
        kernel(layer[0].weight.data)
        layer[1].weight.data.fill_(gamma(layer[1]))
        layer[1].bias.data.fill_(beta)
    return blk
right('plain_identity', plain)
@right('plain_identity')
class NoEps(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm2d(nf, eps=0) for _ in range(2))
        self.kernels = nn.ParameterList(nn.Parameter(F.pad(torch.eye(nf)[:,:,None,None], [1]*4)) for _ in range(2))
    def forward(self, x):
        for bn,w in zip(self.bns, self.kernels): x = F.relu(bn(F.conv2d(x, w, padding=1)))
        return x
@right('plain_identity')
def by_the_variance(nf):
    blk = CifarBlock(nf, nf, 1)
    for m in blk.modules():
        if isinstance(m, nn.Conv2d):
            w = torch.zeros(nf, nf, 3, 3)
            for i in range(nf): w[i,i,1,1] = 1
            m.weight.data = w
        if isinstance(m, nn.BatchNorm2d):
            nn.init.zeros_(m.bias)
            m.running_var -= m.eps
    return blk

def diagonal(value, *place):
    def kernel(w): w.copy_(torch.stack([torch.stack([(torch.full((3,3), value) if place==() else F.one_hot(
        tensor(3*place[0]+place[1]), 9).view(3,3)*value)*(i==j) for j in range(len(w))]) for i in range(len(w))]))
    return kernel
def middle(w): w.copy_(F.pad(torch.ones(*w.shape[:2],1,1), [1]*4))
def one(bn): return 1
for words,kw in {'root of `1+eps`':dict(gamma=one), 'starts beta at 0.001':dict(beta=1e-3),
                 'as they were':dict(gamma=one, beta=1e-3), 'nothing comes through':dict(gamma=lambda bn: 0),
                 'the kernels are 0':dict(kernel=torch.zero_),
                 'but beta':dict(kernel=torch.zero_, gamma=one, beta=1e-3), 'the sum of all':dict(kernel=middle),
                 'sum of all':dict(kernel=middle, gamma=one, beta=1e-3),
                 'in the corner':dict(kernel=diagonal(1., 0, 0)),
                 'weights of a channel are 1;':dict(kernel=diagonal(1.)), 'which blurs':dict(kernel=diagonal(1/9)),
                 'only the first':dict(convs=slice(1)), 'only the second':dict(convs=slice(1,2)),
                 'off by up to':dict(kernel=diagonal(2., 1, 1)), 'not changed yet':dict(around=nn.Identity()),
                 'a shortcut leads past':dict(kernel=noop, gamma=lambda bn: 0, around=nn.Identity())}.items():
    wrong('plain_identity', words, partial(plain, **kw))
wrong('plain_identity', 'not changed yet', new_block)
wrong('plain_identity', 'expected the 672 parameters', lambda nf: nn.Identity())
wrong('plain_identity', 'expected the 672 parameters', lambda nf: nn.Conv2d(nf, nf, 3, padding=1))
wrong('plain_identity', 'expected shape', lambda nf: nn.Sequential(plain(nf), nn.AvgPool2d(2)))
wrong('plain_identity', 'expected a module, came', lambda nf: nf)

# 07: copy by order

@right('by_order')
def looks_first(dst, src):
    a,b = list(dst.state_dict().values()),list(src.state_dict().values())
    assert [o.shape for o in a]==[o.shape for o in b], 'the nets do not match'
    for x,y in zip(a, b): x.copy_(y)
    return dst
@right('by_order')
def by_other_names(dst, src):
    "A state dict under the names of `dst`"
    old,new = dst.state_dict(),src.state_dict()
    if len(old)!=len(new): raise ValueError(f'{len(old)} entries here, {len(new)} there')
    named = dict(zip(old, new.values()))
    for k,v in old.items():
        if v.size()!=named[k].size(): raise ValueError(f'{k} is of size {v.size()} here')
    dst.load_state_dict(named)
@right('by_order')
def module_by_module(dst, src):
    def tensors(m): return [t for o in m.modules() for t in (*o.parameters(False), *o.buffers(False))]
    pairs = list(zip(tensors(dst), tensors(src), strict=True))
    for a,b in pairs: assert a.shape==b.shape
    with torch.no_grad():
        for a,b in pairs: a[...] = b

def pairs_of(which): return lambda dst,src: [a.data.copy_(b) for a,b in zip(which(dst), which(src))]
wrong('by_order', 'running means and variances', pairs_of(lambda m: m.parameters()))
wrong('by_order', 'only the kernels', pairs_of(lambda m: [p for p in m.parameters() if p.ndim>2]))
wrong('by_order', 'only the buffers', pairs_of(lambda m: m.buffers()))
wrong('by_order', 'dst.0.0.weight: ', pairs_of(lambda m: [o for o in m.state_dict().values() if o.ndim<4]))
@wrong('by_order', 'the same name')
def by_name(dst, src):
    for k,v in src.state_dict().items():
        if k in dst.state_dict(): dst.state_dict()[k].copy_(v)
@wrong('by_order', 'Error(s) in loading state_dict')
def by_name_alone(dst, src):
    dst.load_state_dict(src.state_dict())
wrong('by_order', '`src` has changed', lambda dst,src: looks_first(src, dst))
wrong('by_order', 'you changed a copy, and returned it: change `dst`', lambda dst,src: looks_first(deepcopy(dst), src))
wrong('by_order', 'a layer less: expected an error', pairs_of(lambda m: m.state_dict().values()))
@wrong('by_order', 'a layer more: expected an error')
def as_far_as_dst_goes(dst, src):
    old,new = list(dst.state_dict().values()),list(src.state_dict().values())
    for i in range(len(old)): assert old[i].shape==new[i].shape
    for a,b in zip(old, new): a.copy_(b)
@wrong('by_order', 'other entries are copied')
def strict_zip(dst, src):
    for a,b in zip(dst.state_dict().values(), src.state_dict().values(), strict=True): a.copy_(b)
@wrong('by_order', 'other entries are copied')
def counts_first(dst, src):
    assert len(dst.state_dict())==len(src.state_dict())
    strict_zip(dst, src)
@wrong('by_order', '(1, 4) should fill one of (2, 4)')
def broadcasts(dst, src):
    pairs = list(zip(dst.state_dict().values(), src.state_dict().values(), strict=True))
    for a,b in pairs: b.expand_as(a)
    for a,b in pairs: a.copy_(b)
@wrong('by_order', 'double precision')
def replaces(dst, src):
    for a,b in zip(dst.parameters(), src.parameters()): a.data = b.data.clone()
    for a,b in zip(dst.buffers(), src.buffers()): a.data = b.data.clone()
@wrong('by_order', 'share tensors')
def shares(dst, src):
    src.double()
    for a,b in zip(dst.parameters(), src.parameters()): a.data = b.data
    for a,b in zip(dst.buffers(), src.buffers()): a.data = b.data
wrong('by_order', 'that is the one from resnet_course.classics', copy_weights)

# 07: fold the bias

@right('fold_bias')
def in_copies(conv, bn):
    conv,bn = deepcopy(conv),deepcopy(bn)
    bn.running_mean.sub_(conv.bias.data)
    conv.bias = None
    return conv,bn
@right('fold_bias')
def new_layers(conv, bn):
    no_bias = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    no_bias.load_state_dict({'weight':conv.weight})
    norm = nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum)
    norm.load_state_dict({**bn.state_dict(), 'running_mean':bn.running_mean-conv.bias})
    return nn.Sequential(no_bias, norm)
@right('fold_bias')
class Folded(nn.Module):
    def __init__(self, conv, bn):
        super().__init__()
        self.kernel,self.how = nn.Parameter(conv.weight.detach().clone()),dict(stride=conv.stride, padding=conv.padding)
        self.norm = deepcopy(bn)
        with torch.no_grad(): self.norm.running_mean -= conv.bias
    def forward(self, x): return self.norm(F.conv2d(x, self.kernel, **self.how))

def fold(change=lambda bn,b: bn.running_mean.sub_(b), stride=None, padding=None, norm=deepcopy, bias=False):
    "The right answer, of which parts can be wrong"
    def f(conv, bn):
        new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, stride or conv.stride,
                        conv.padding if padding is None else padding, bias=bias)
        new.weight.data = conv.weight.data.clone()
        if bias: new.bias.data.zero_()
        bn = norm(bn)
        with torch.no_grad(): change(bn, conv.bias)
        return nn.Sequential(new, bn)
    return f
def std(bn): return (bn.running_var+bn.eps).sqrt()
def renewed(**kw):
    def norm(bn):
        res = nn.BatchNorm2d(bn.num_features, **kw)
        res.load_state_dict(bn.state_dict())
        return res
    return norm
for words,kw in {
    'the sign is wrong':dict(change=lambda bn,b: bn.running_mean.add_(b)), 'the bias is dropped':dict(change=noop),
    'fold it into the mean':dict(change=lambda bn,b: bn.bias.add_(b)), 'the bias is scaled':dict(
        change=lambda bn,b: bn.running_mean.sub_(b/std(bn))),
    'by way of beta':dict(change=lambda bn,b: bn.bias.add_(b*bn.weight/std(bn))),
    'is lost: copy the layer':dict(norm=renewed()), '`eps` or `momentum`':dict(norm=renewed(eps=.02)),
    'momentum` of the batch norm is lost':dict(norm=renewed(momentum=.3)),
    'stride and padding':dict(stride=1, padding=0), 'the stride of the':dict(stride=1),
    'the padding of the':dict(padding=0),
    'still has a bias':dict(bias=True),
    'after that, in eval mode: the shape is right':dict(norm=renewed(eps=.02, momentum=.5)),
    'off by up to':dict(change=lambda bn,b: bn.running_mean.mul_(1-b))}.items(): wrong('fold_bias', words, fold(**kw))
@wrong('fold_bias', 'changes its argument: work on a copy')
def in_place(conv, bn):
    bn.running_mean -= conv.bias.detach()
    conv.bias = None
    return conv,bn
@wrong('fold_bias', 'a leaf Variable')
def with_gradients(conv, bn):
    bn.bias += conv.bias
    return conv,bn
@wrong('fold_bias', 'share tensors with the given ones')
def the_same_weights(conv, bn):
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    new.weight.data = conv.weight.data
    return new,in_copies(conv, bn)[1]
wrong('fold_bias', 'expected the two layers', lambda conv,bn: bn.running_mean-conv.bias)
wrong('fold_bias', 'expected the two layers', lambda conv,bn: [conv.weight, bn.running_mean-conv.bias])
wrong('fold_bias', 'in eval mode: expected shape', lambda conv,bn: [*in_copies(conv, bn), nn.Flatten()])

# 07: sides in Keras' net

keras_224 = [112,55,55,28,14,7,4]
right('keras_sides', keras_224, 32_768)
right('keras_sides', sides=(112, (112-3)//2+1, *[math.ceil(55/2**i) for i in range(5)]), inputs=2048*4*4)
right('keras_sides', sides=tensor(keras_224), inputs=2048.*16)
for words,sides in {'no padding here':[112,56,56,28,14,7,4], 'first convolution has padding':[109,54,54,27,14,7,4],
                    'so it rounds up':[112,55,55,27,13,6,3], 'stage 2 keeps':[112,55,28,14,7,4,2],
                    'not the entire grid':[*keras_224[:-1],1], 'hang over the edge':[*keras_224[:-1],3],
                    'moves by 2':[*keras_224[:-1],6], '224 is the picture':[224,*keras_224[:-1]],
                    'picture of 64':[32,15,15,8,4,2,1], 'expected 7 numbers, after conv1':keras_224[:-1],
                    'sides: 30 after stage3 is not it':[112,55,55,30,15,8,4],
                    'not written yet':[112,55,...,28,14,7,4]}.items(): wrong('keras_sides', words, sides, 32_768)
wrong('keras_sides', 'expected 7 numbers, came 112', 112, 32_768)
for words,n in {'inputs: that is for a pool':2048, 'before avg_pool':2048*49, 'has 16 places':2048*4,
                'the last stage has 2048':512*16,
                'rounded down':2048*9, 'each place has':16, 'too small by a factor of 2':2048*8}.items():
    wrong('keras_sides', words, keras_224, n)

# 07: pre-activation

def before(n): return nn.Sequential(nn.BatchNorm2d(n), nn.ReLU())
def bare(ni, nf, ks, stride=1, bias=False): return nn.Conv2d(ni, nf, ks, stride, ks//2, bias=bias)

class PreAct(nn.Module):
    def __init__(self, ni, nf, stride=1, pre=before, mid=before, end=None, conv=bare, short=None,
                 strides=lambda s: (s,1), needed=lambda ni,nf,s: ni!=nf or s!=1):
        super().__init__()
        a,b = strides(stride)
        self.a,self.b = pre(ni),mid(nf)
        self.one,self.two = conv(ni, nf, 3, a),conv(nf, nf, 3, b)
        if end: self.end = end(nf)
        self.short = (short or conv)(ni, nf, 1, stride) if needed(ni, nf, stride) else None
    def branch(self, x): return getattr(self, 'end', noop)(self.two(self.b(self.one(x))))
    def forward(self, x):
        out = self.a(x)
        return self.branch(out) + (self.short(out) if self.short else x)
right('preact', PreAct)
@right('preact')
class Silent(PreAct):
    "Its branch starts at zero"
    def __init__(self, *args):
        super().__init__(*args)
        nn.init.zeros_(self.two.weight)
@right('preact')
class WithFunctions(nn.Module):
    "Registered in another order; the 1x1 convolution is a linear layer"
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.stride = stride
        if ni!=nf or stride>1: self.proj = nn.Linear(ni, nf, bias=False)
        self.w2,self.w1 = (nn.Parameter(torch.randn(nf, n, 3, 3)/n) for n in (nf,ni))
        self.bn2,self.bn1 = nn.BatchNorm2d(nf),nn.BatchNorm2d(ni)
    def forward(self, x):
        y = self.bn1(x).clamp(min=0)
        if hasattr(self, 'proj'): x = self.proj(y[..., ::self.stride, ::self.stride].movedim(1,-1)).movedim(-1,1)
        y = self.bn2(F.conv2d(y, self.w1, stride=self.stride, padding=1)).clamp(min=0)
        return x + F.conv2d(y, self.w2, padding=1)
@right('preact')
class WithConvLayer(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        def conv(*a, **kw): return ConvLayer(*a, norm_type=None, act_cls=None, bias=False, **kw)
        self.pre = nn.Sequential(BatchNorm(ni), nn.ReLU())
        self.branch = nn.Sequential(conv(ni, nf, stride=stride), BatchNorm(nf), nn.ReLU(), conv(nf, nf))
        self.path = conv(ni, nf, ks=1, stride=stride) if (ni,stride)!=(nf,1) else None
    def forward(self, x):
        y = self.pre(x)
        if self.path is not None: x = self.path(y)
        return self.branch(y) + x

def forward(f): return type('MyPreAct', (PreAct,), dict(forward=f))
def path(m, x): return m.short(x) if m.short else x
for words,f in {'takes the raw input; it should':lambda m,x: m.branch(m.a(x)) + path(m, x),
                'stand in its way':lambda m,x: (lambda y: m.branch(y) + path(m, y))(m.a(x)),
                'norm and ReLU run twice':lambda m,x: m.branch(m.a(x)) + (m.short(m.a(x)) if m.short else x),
                'the branch takes the raw':lambda m,x: m.branch(x) + (m.short(m.a(x)) if m.short else x),
                'branch and shortcut take':lambda m,x: m.branch(x) + path(m, x),
                'the path should be free':lambda m,x: F.relu(PreAct.forward(m, x)),
                'the shortcut is missing':lambda m,x: m.branch(m.a(x)),
                'off by up to':lambda m,x: PreAct.forward(m, x)*2,
                'its gradient is not':lambda m,x: PreAct.forward(m, x) - (0 if m.short else x - x.detach())}.items():
    wrong('preact', words, forward(f))
def relu_first(n): return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(n))
def relu(n): return nn.ReLU()
def biased(*a): return bare(*a, bias=True)
def pooled(ni, nf, ks, stride):
    return nn.Sequential(*[nn.AvgPool2d(stride, ceil_mode=True)]*(stride>1), *[bare(ni, nf, 1)]*(ni!=nf))
for words,kw in {
    'ReLU before the first':dict(pre=nn.BatchNorm2d), 'ReLU before the second':dict(mid=nn.BatchNorm2d),
    'norm before the first':dict(pre=relu), 'norm before the second':dict(mid=relu),
    'norm first':dict(pre=relu_first, mid=relu_first), 'a norm follows the second':dict(end=nn.BatchNorm2d),
    'norm and ReLU follow':dict(end=before), 'should be bare':dict(short=lambda ni,nf,ks,s: nn.Sequential(
        bare(ni, nf, ks, s), nn.BatchNorm2d(nf))), 'leave it out there':dict(needed=lambda *a: True),
    'where only the size changes':dict(short=lambda ni,nf,ks,s: nn.MaxPool2d(1, s) if ni==nf else bare(ni, nf, ks, s)),
    'must match':dict(needed=lambda ni,nf,s: ni!=nf), 'the shortcut pools':dict(short=pooled),
    'the convolutions have a bias':dict(conv=biased), 'of the branch have a bias':dict(conv=biased, short=bare),
    'the 1x1 convolution has a bias':dict(short=biased), 
    'the second convolution has the stride':dict(strides=lambda s: (1,s)),
    'both convolutions':dict(strides=lambda s: (s,s))}.items(): wrong('preact', words, partial(PreAct, **kw))
wrong('preact', '`stride` is not used', lambda ni,nf,stride: PreAct(ni, nf))
wrong('preact', 'that is v1', block(partial(branch, gamma=1), strided))
wrong('preact', "the library's own", type('Mine', (PreActBlock,), {}))
wrong('preact', 'that is the one from resnet_course.preact', PreActBlock)
wrong('preact', 'hand in the class', PreAct(8, 8))

# 07: softmax twice

least,greatest = math.log(1+99/math.e),math.log(math.e+99)
right('loss_floor', lowest=3.622, highest=4.622)
from_softmax = torch.eye(100)[:1]
right('loss_floor', *[F.cross_entropy(from_softmax, tensor([y])) for y in (0,1)])
right('loss_floor', lowest=least, highest=1+least)
for words,n in {'taken for a score':0, 'does not know':math.log(100), '10 classes':1.461, 'the others are 99':3.632,
                'the greatest':4.622, 'the probability':math.e/(math.e+99), 'not negative':-least,
                'natural logarithm':least/math.log(2), 'logarithm, please':least/math.log(10),
                'lowest: 1 is too small':1}.items(): wrong('loss_floor', words, lowest=n, highest=greatest)
for words,n in {'from a softmax is between':math.inf, 'does not know':math.log(100), '10 classes':2.461,
                'the others are 99':4.632, 'the least loss':3.622, 'the probability':1/(math.e+99),
                'not negative':-greatest, 'natural logarithm':greatest/math.log(2),
                'highest: 10 is too large':10}.items():
    wrong('loss_floor', words, lowest=least, highest=n)

# 08: bytes in a cache

right('cache_bytes', 900*160*213*3 + 100*120*90*3)
right('cache_bytes', n=3*160*(900*160*500/375) + 3.24e6)
for words,n in {'three bytes for each pixel':900*160*213 + 100*120*90, 'are enlarged':1000*160*213*3,
                'small photos are missing':900*160*213*3, 'no squares are kept: ':900*160*160*3 + 100*120*90*3,
                'no squares are kept, and':1000*160*160*3,
                'the longer side keeps':900*160*160*3 + 100*90*90*3, 'not the longer':900*160*120*3 + 100*120*90*3,
                'are reduced before':900*500*375*3 + 100*120*90*3, 'the floats are made later':4*95_256_000,
                'not bits':8*95_256_000, 'too small by a factor of 1e+06':95.256}.items():
    wrong('cache_bytes', words, n)

# 08: all or nothing

@right('whole')
def renamed_beside(file, write):
    tmp = file.with_name(file.name+'.part')
    try:
        with tmp.open('wb') as f: write(f)
        os.replace(tmp, file)
    finally: tmp.unlink(missing_ok=True)
@right('whole')
def named_by_tempfile(file, write):
    f = tempfile.NamedTemporaryFile('wb', dir=file.parent, delete=False)
    try:
        write(f)
        f.close()
    except BaseException:
        f.close()
        os.unlink(f.name)
        raise
    os.rename(f.name, file)
@right('whole')
def in_a_folder_beside(file, write):
    with tempfile.TemporaryDirectory(dir=file.parent) as d:
        with open(f'{d}/new', 'wb') as f: write(f)
        Path(f'{d}/new').replace(file)

@right('whole')
def with_an_error_of_its_own(file, write):
    part = file.with_suffix('.part')
    try:
        with open(part, 'wb') as f: write(f)
        os.replace(part, file)
    except OSError as e: raise OSError('not saved') from e
    finally: part.unlink(missing_ok=True)
@wrong('whole', 'under its own name')
def at_once(file, write):
    with file.open('wb') as f: write(f)
@wrong('whole', 'for a while half of it')
def deletes_half(file, write):
    try: at_once(file, write)
    except BaseException: file.unlink(); raise
@wrong('whole', 'clean up in a `finally`')
def left(file, write):
    tmp = f'{file}.tmp'
    with open(tmp, 'wb') as f: write(f)
    os.rename(tmp, file)
@wrong('whole', '`KeyboardInterrupt` is no `Exception`')
def errors_only(file, write):
    tmp = Path(f'{file}.tmp')
    try: at_once(tmp, write)
    except Exception as e:
        tmp.unlink()
        raise e
    tmp.rename(file)
@wrong('whole', 'even after an error')
def always_renamed(file, write):
    tmp = Path(f'{file}.tmp')
    try: at_once(tmp, write)
    finally: tmp.rename(file)
@wrong('whole', 'is swallowed')
def swallowed(file, write):
    try: renamed_beside(file, write)
    except OSError as e: print(end='')
@wrong('whole', 'is copied')
def copied(file, write):
    tmp = file.with_suffix('.tmp')
    try:
        at_once(tmp, write)
        shutil.copyfile(tmp, file)
    finally: tmp.unlink()
@wrong('whole', 'Rename it')
def copied_and_left(file, write):
    tmp = file.with_suffix('.tmp')
    try: at_once(tmp, write)
    except BaseException: tmp.unlink(); raise
    shutil.copy(tmp, file)
@wrong('whole', 'is copied')
def read_again(file, write):
    tmp = file.with_suffix('.tmp')
    try:
        at_once(tmp, write)
        file.write_bytes(tmp.read_bytes())
    finally: tmp.unlink()
@wrong('whole', 'in memory or in another folder')
def in_memory(file, write):
    buffer = BytesIO()
    write(buffer)
    file.write_bytes(buffer.getvalue())
@wrong('whole', 'in memory or in another folder')
def moved(file, write):
    with tempfile.TemporaryDirectory() as d:
        at_once(Path(d)/file.name, write)
        shutil.move(f'{d}/{file.name}', file)
@wrong('whole', 'deleted before there is a new one')
def deleted_first(file, write):
    if file.exists(): file.unlink()
    renamed_beside(file, write)
def written_beside(file, write):
    tmp = Path(f'{file}.tmp')
    try: at_once(tmp, write)
    except BaseException: tmp.unlink(); raise
    return tmp
@wrong('whole', 'for a moment there is neither')
def deleted_then_renamed(file, write):
    tmp = written_beside(file, write)
    if file.exists(): file.unlink()
    tmp.rename(file)
@wrong('whole', 'for a moment there is neither')
def removed_then_moved(file, write):
    tmp = written_beside(file, write)
    if os.path.exists(file): os.remove(file)
    shutil.move(tmp, file)
@wrong('whole', 'for a moment there is neither')
def out_of_the_way(file, write):
    tmp,old = written_beside(file, write),f'{file}.old'
    if file.exists(): os.replace(file, old)
    os.rename(tmp, file)
    if os.path.exists(old): os.unlink(old)
@right('whole')
def with_a_second_name(file, write):
    "The old file is kept under another name, and keeps its own"
    tmp,old = written_beside(file, write),Path(f'{file}.old')
    if file.exists(): os.link(file, old)
    tmp.replace(file)
    old.unlink(missing_ok=True)
@wrong('whole', 'FileNotFoundError')
def cleans_what_is_gone(file, write):
    tmp = file.with_suffix('.tmp')
    try:
        at_once(tmp, write)
        tmp.replace(file)
    finally: tmp.unlink()

# 08: a crop of a given area

@right('crop_box')
def from_sides(h, w, area, ratio, u, v):
    height = round(math.sqrt(area*h*w/ratio))
    width = round(math.sqrt(area*h*w*ratio))
    return math.floor(u*(h-height+1)), math.floor(v*(w-width+1)), height, width
@right('crop_box')
def with_numpy(h, w, area, ratio, u, v):
    size = np.sqrt(area*h*w*np.array([1/ratio,ratio])).round().astype(int)
    return np.r_[(np.array([u,v])*(np.array([h,w])-size+1)).astype(int), size]

def crop_sides(h, w, area, ratio): return round((area*h*w/ratio)**.5), round((area*h*w*ratio)**.5)
def placed(make, more=1):
    "A crop of the sides that `make` says"
    def f(h, w, area, ratio, u, v):
        ch,cw = make(h, w, area, ratio)
        return int(u*(h-ch+more)), int(v*(w-cw+more)), ch, cw
    return f
for words,make in {
        'the ratio is width to height': lambda h,w,a,r: crop_sides(h, w, a, r)[::-1],
        'as a share of each side: ': lambda h,w,a,r: (round(a*(h*w/r)**.5), round(a*(h*w*r)**.5)),
        "as a share of each side, and": lambda h,w,a,r: (round(h*a/r**.5), round(w*a*r**.5)),
        'not one to that of the photo': lambda h,w,a,r: (round(h*(a/r)**.5), round(w*(a*r)**.5)),
        'is the square of the ratio': lambda h,w,a,r: (round((a*h*w)**.5/r), round((a*h*w)**.5*r)),
        'and another area': lambda h,w,a,r: (round((a*h*w)**.5), round((a*h*w)**.5*r)),
        'rounded down': lambda h,w,a,r: (int((a*h*w/r)**.5), int((a*h*w*r)**.5)),
        'expected (43, 27, 117, 146), came (': lambda h,w,a,r: (round(a*h/r), round(a*w*r))}.items():
    wrong('crop_box', words, placed(make))
wrong('crop_box', 'another area', placed(lambda h,w,a,r: (round((a*h*w)**.5/r), round((a*h*w)**.5))))
wrong('crop_box', 'the last place', placed(crop_sides, 0))
def rounded(h, w, a, r, u, v):
    ch,cw = crop_sides(h, w, a, r)
    return round(u*(h-ch)), round(v*(w-cw)), ch, cw
wrong('crop_box', 'come up half as often', rounded)
wrong('crop_box', 'sticks out', lambda h,w,a,r,u,v: (int(u*h), int(v*w), *crop_sides(h, w, a, r)))
@wrong('crop_box', 'in the middle')
def centred(h, w, area, ratio, u, v):
    ch,cw = crop_sides(h, w, area, ratio)
    return [(h-ch)//2, (w-cw)//2, ch, cw]
wrong('crop_box', '`u` is for the top', lambda h,w,a,r,u,v: from_sides(h, w, a, r, v, u))
def ordered(f): return lambda *args: f(*from_sides(*args))
wrong('crop_box', 'top and left are exchanged', ordered(lambda t,l,h,w: (l,t,h,w)))
wrong('crop_box', 'height and width are exchanged', ordered(lambda t,l,h,w: (t,l,w,h)))
wrong('crop_box', "Pillow's order", ordered(lambda t,l,h,w: (l,t,l+w,t+h)))
wrong('crop_box', 'lower right corner', ordered(lambda t,l,h,w: [t,l,t+h,l+w]))
wrong('crop_box', 'TypeError', lambda size, area, ratio, u, v: size)

# 08: a convolution as a product

def places(x, w, stride, padding): return [(n+2*padding-w.shape[-1])//stride+1 for n in x.shape[2:]]
@right('as_product')
def unfolded(x, w, stride, padding):
    return (w.flatten(1) @ F.unfold(x, w.shape[-1], 1, padding, stride)).unflatten(2, places(x, w, stride, padding))
@right('as_product')
def einsummed(x, w, stride, padding):
    ks = w.shape[-1]
    windows = F.pad(x, [padding]*4).unfold(2, ks, stride).unfold(3, ks, stride)   # (bs, ni, oh, ow, ks, ks)
    return torch.einsum('bihwyx,oiyx->bohw', windows, w)
@right('as_product')
def tap_by_tap(x, w, stride, padding):
    (h,wd),x = places(x, w, stride, padding),F.pad(x, (padding,)*4)
    def tap(i, j): return x[:,:,i:i+stride*h:stride,j:j+stride*wd:stride][:,:,:h,:wd]
    ks = range(w.shape[-1])
    return sum(torch.tensordot(tap(i,j), w[:,:,i,j], ([1],[1])).movedim(-1,1) for i in ks for j in ks)

wrong('as_product', "PyTorch's convolution is in it", lambda x,w,stride,padding: F.conv2d(x, w, None, stride, padding))
wrong('as_product', 'RuntimeError', lambda x,w,s,p: (w.flatten(1) @ F.unfold(x, 3, 1, p, s)).unflatten(2, places(x, w, s, p)))
wrong('as_product', '`stride` is not used', lambda x,w,stride,padding: unfolded(x, w, 1, padding))
wrong('as_product', '`padding` is not used', lambda x,w,stride,padding: unfolded(x, w, stride, 0))
wrong('as_product', 'stride and padding are exchanged', lambda x,w,stride,padding: unfolded(x, w, padding, stride))
def with_rows(f): return lambda x,w,s,p: f(F.unfold(x, w.shape[-1], padding=p, stride=s), w, *places(x, w, s, p))
for words,f in {
        'in another order': lambda r,w,h,wd: (w.movedim(1,-1).flatten(1) @ r).view(len(r), -1, h, wd),
        'of the kernels are exchanged': lambda r,w,h,wd: (w.transpose(2,3).flatten(1) @ r).view(len(r), -1, h, wd),
        'are mirrored': lambda r,w,h,wd: (w.flip(2).flip(3).flatten(1) @ r).view(len(r), -1, h, wd),
        'height and width are exchanged': lambda r,w,h,wd: (w.flatten(1) @ r).view(len(r), -1, h, wd).transpose(2,3),
        'in one row': lambda r,w,h,wd: w.flatten(1) @ r,
        'before the channels': lambda r,w,h,wd: r.mT @ w.flatten(1).T,
        'are mixed up': lambda r,w,h,wd: (r.mT @ w.flatten(1).T).view(len(r), len(w), h, wd),
        'off by up to': lambda r,w,h,wd: (w.flatten(1) @ r).view(len(r), -1, h, wd).relu(),
        'RuntimeError': lambda r,w,h,wd: (w @ r).view(len(r), -1, h, wd)}.items():
    wrong('as_product', words, with_rows(f))
wrong('as_product', 'height and width are exchanged',
      with_rows(lambda r,w,h,wd: (w.flatten(1) @ r).view(len(r), -1, wd, h)))
wrong('as_product', 'before the channels',
      with_rows(lambda r,w,h,wd: (r.mT @ w.flatten(1).T).view(len(r), h, wd, len(w))))
def mean_of(x, w, stride, padding): return unfolded(x, w, stride, padding)/w[0].numel()
wrong('as_product', 'mean_of: the shape is right, the values are off by up to', mean_of)

# 08: how near to the limit

right('peak_share', share=.36, limit=555.6)
right('peak_share', share=tensor(6*600*200/2e6), limit=2e12/(6*6e8))
for words,v in {'share: a multiply-add is two operations, and':.06, 'the forward pass alone':.12,
                'a multiply-add is two operations':.18, 'share: the backward pass has two':.24, 'not percent':36,
                'the other way round':1/.36, 'too large by a factor of 2':.72}.items():
    wrong('peak_share', words, share=v, limit=556)
for words,v in {'limit: that is the forward pass alone':1667, 'limit: a multiply-add':3333.3/3,
                'two operations, and the backward':3333, 'divide by the share':72,
                'how many times as fast it could be; the question is for images per second':1/.36,
                'seconds per image':.0018, 'limit: the backward pass has two products':3333/4}.items():
    wrong('peak_share', words, share=.36, limit=v)

# 09: where a smoothed loss is smallest

right('smoothing_best', p=.802, loss=-(.802*math.log(.802) + 99*.002*math.log(.002)))
right('smoothing_best', p=tensor(1-.2+.2/100), loss=1.41)
for words,n in {'has its share':.8, 'among 100 classes':.82, 'a smoothing of 0.1':.901, 'each of the other':.002,
                'all others get':.198, 'is infinite':1., 'ten classes and a smoothing':.91,
                'too small by a factor of 2':.401}.items(): wrong('smoothing_best', words, p=n, loss=1.4074)
for words,n in {'as if nothing':.2206, '99 others have a part':.17694, 'the right class is missing':1.2305,
                'not one':.18937, 'counted already':1.4198, 'the sign':-1.4074, 'base 2':2.0305, 'base 10':.61124,
                'ten classes and':.5003, 'down to 0':0, 'loss: 2.8148 is too large':2.8148}.items():
    wrong('smoothing_best', words, p=.802, loss=n)

# 09: mixup

def as_column(lam): return lam.view(-1,1,1,1)
def mixed(x, lam, perm): return as_column(lam)*x + (1-as_column(lam))*x[perm]
def in_a_loop(x, lam, perm): return torch.stack([l*x[i] + (1-l)*x[j] for i,(l,j) in enumerate(zip(lam, perm))])
def each_loss(scores, y): return F.cross_entropy(scores, y, reduction='none')
def two_losses(scores, y, lam, perm): return (lam*each_loss(scores, y) + (1-lam)*each_loss(scores, y[perm])).mean()
def as_targets(scores, y, lam, perm):
    one_hot = F.one_hot(y, scores.shape[1])
    return F.cross_entropy(scores, lam[:,None]*one_hot + (1-lam[:,None])*one_hot[perm])
def by_hand(scores, y, lam, perm):
    s = scores.log_softmax(1)
    return -sum(l*s[i,a] + (1-l)*s[i,b] for i,(l,a,b) in enumerate(zip(lam, y, y[perm])))/len(y)
right('mixup', mixed, two_losses)
right('mixup', in_a_loop, as_targets)
right('mixup', lambda x,lam,perm: x[perm].lerp(x, as_column(lam)), by_hand)

for words,f in {
        'went along the width': lambda x,lam,perm: lam*x + (1-lam)*x[perm],
        'the shares are exchanged': lambda x,lam,perm: mixed(x, 1-lam, perm),
        'that of the first': lambda x,lam,perm: lam[0]*x + (1-lam[0])*x[perm],
        'all have the mean': lambda x,lam,perm: lam.mean()*x + (1-lam.mean())*x[perm],
        'the other photo has `1-lam`': lambda x,lam,perm: as_column(lam)*x + x[perm],
        'the photo itself has `lam`': lambda x,lam,perm: x + (1-as_column(lam))*x[perm],
        'mean of both': lambda x,lam,perm: torch.stack([x, x[perm]]).mean(0),
        'here it is another': lambda x,lam,perm: mixed(x, lam, perm.argsort()),
        'from the other end': lambda x,lam,perm: as_column(lam)*x + (1-as_column(lam))*x.flip(0),
        '`lam` is permuted too': lambda x,lam,perm: as_column(lam[perm])*x + as_column(1-lam[perm])*x[perm],
        'come out as they were': lambda x,lam,perm: x,
        'changes its argument': lambda x,lam,perm: x.copy_(mixed(x, lam, perm)),
        'RuntimeError': lambda x,lam,perm: lam@x,
        "shape '[5, 1, 1, 1]' is invalid": lambda x,lam,perm: lam.view(5,1,1,1)*(x-x[perm]) + x[perm],
        'off by up to': lambda x,lam,perm: mixed(x, lam.maximum(1-lam), perm)}.items():
    wrong('mixup', words, f, two_losses)
for words,f in {
        "for the photo's own label": lambda s,y,lam,perm: two_losses(s, y, 1-lam, perm),
        'the label of the other photo is missing': lambda s,y,lam,perm: F.cross_entropy(s, y),
        'before you take the mean': lambda s,y,lam,perm:
            lam.mean()*F.cross_entropy(s, y) + (1-lam.mean())*F.cross_entropy(s, y[perm]),
        'weigh its losses': lambda s,y,lam,perm:
            lam[0]*F.cross_entropy(s, y) + (1-lam[0])*F.cross_entropy(s, y[perm]),
        'the scores are permuted': lambda s,y,lam,perm:
            (lam*each_loss(s, y) + (1-lam)*each_loss(s[perm], y[perm])).mean(),
        'Permute the labels only': lambda s,y,lam,perm: (lam*each_loss(s, y) + (1-lam)*each_loss(s[perm], y)).mean(),
        'came the sum': lambda s,y,lam,perm: lam@each_loss(s, y) + (1-lam)@each_loss(s, y[perm]),
        'came one for each photo': lambda s,y,lam,perm: lam*each_loss(s, y) + (1-lam)*each_loss(s, y[perm]),
        'its own `lam`: weigh': lambda s,y,lam,perm: lam*F.cross_entropy(s, y) + (1-lam)*F.cross_entropy(s, y[perm]),
        'softmax came before': lambda s,y,lam,perm: two_losses(F.softmax(s, dim=1), y, lam, perm),
        'between two of them lies a third': lambda s,y,lam,perm: F.cross_entropy(s, (lam*y + (1-lam)*y[perm]).long()),
        'RuntimeError': lambda s,y,lam,perm: F.cross_entropy(s, lam*y + (1-lam)*y[perm])}.items():
    wrong('mixup', words, mixed, f)

# 09: a running average of the weights

def kept(decay, n): return min(decay, (n+1)/(n+10))
@right('running_average')
def by_state_dict(average, net, decay, n):
    new = net.state_dict()
    for name,a in average.state_dict().items():
        if a.dtype.is_floating_point: a.mul_(kept(decay, n)).add_(new[name]*(1-kept(decay, n)))
        else: a.copy_(new[name])
@right('running_average')
def parts_apart(average, net, decay, n):
    with torch.no_grad():
        for a,b in zip(average.parameters(), net.parameters()): a.copy_(b + (a-b)*kept(decay, n))
        for a,b in zip(average.buffers(), net.buffers()):
            a.copy_(b if a.dtype==torch.long else b + (a-b)*kept(decay, n))
@right('running_average')
def loaded(average, net, decay, n):
    keep,a,b = kept(decay, n),average.state_dict(),net.state_dict()
    average.load_state_dict({k: b[k] if k.endswith('num_batches_tracked') else keep*a[k]+(1-keep)*b[k] for k in a})

def averaged(keep=kept, which=lambda k: True, other=lambda k: 'tracked' in k):
    def f(average, net, decay, n):
        k,new = keep(decay, n),net.state_dict()
        for name,a in average.state_dict().items():
            if other(name): a.copy_(new[name])
            elif which(name): a.copy_(k*a + (1-k)*new[name])
    return f
@wrong('running_average', 'mean and variance stay behind')
def parameters_only(average, net, decay, n):
    for a,b in zip(average.parameters(), net.parameters()): a.data.lerp_(b.data, 1-kept(decay, n))
wrong('running_average', 'stay behind', averaged(which=lambda k: 'running' not in k))
wrong('running_average', 'variance are copied', averaged(other=lambda k: 'running' in k or 'tracked' in k))
wrong('running_average', 'right later on', averaged(lambda decay,n: decay))
wrong('running_average', 'right in the first steps', averaged(lambda decay,n: (1+n)/(10+n)))
wrong('running_average', 'expected the smaller', averaged(lambda decay,n: max(decay, (1+n)/(10+n))))
wrong('running_average', 'shares are exchanged', averaged(lambda decay,n: 1-kept(decay, n)))
wrong('running_average', 'the net is copied', lambda average,net,decay,n: average.load_state_dict(net.state_dict()))
wrong('running_average', 'mean of both', averaged(lambda decay,n: .5))
wrong('running_average', 'there is no average', averaged(which=lambda k: 'tracked' not in k, other=lambda k: False))
wrong('running_average', 'average.1.num_batches_tracked: expected 8, came 6', averaged(other=lambda k: False))
wrong('running_average', 'you changed a copy, and returned it: change `average`', lambda average,net,decay,n: deepcopy(net))
wrong('running_average', 'nothing in `average` has changed', lambda average,net,decay,n: 1)
@wrong('running_average', 'the net itself has changed')
def other_way_round(average, net, decay, n): by_state_dict(net, average, decay, n)
wrong('running_average', 'average.0.weight: the shape is right', averaged(lambda decay,n: decay**n))
@wrong('running_average', "RuntimeError: a leaf Variable that requires grad")
def with_grad(average, net, decay, n):
    for a,b in zip(average.parameters(), net.parameters()): a.lerp_(b, 1-kept(decay, n))

# 09: what weight decay leaves alone

@right('decay_groups')
def by_dimension(net, wd):
    kernels = [p for p in net.parameters() if p.ndim>=2]
    rest = [p for p in net.parameters() if p.ndim<2]
    return [{'params':kernels, 'weight_decay':wd}, {'params':rest, 'weight_decay':0}]
@right('decay_groups')
def one_each(net, wd): return (dict(params=p, weight_decay=wd*(p.ndim>1)) for p in net.parameters())
@right('decay_groups')
def by_fastai(net, wd):
    spared = {id(p) for p in norm_bias_params(net)}
    return [dict(params=[o for o in net.named_parameters() if (id(o[1]) in spared)==no], weight_decay=0. if no else wd)
            for no in (True,False)]

def grouped(spared, other={'weight_decay':0.}):
    "Groups by what `spared` says of a module and a parameter's name"
    def f(net, wd):
        ps = [(p, spared(m, name)) for m in net.modules() for name,p in m.named_parameters(recurse=False)]
        return [dict(params=[p for p,no in ps if not no], weight_decay=wd),
                dict(other, params=[p for p,no in ps if no])]
    return f
def is_norm(m): return isinstance(m, (nn.BatchNorm1d,nn.BatchNorm2d))
def spare(m, name): return is_norm(m) or name=='bias'
wrong('decay_groups', 'not changed yet', lambda net,wd: [dict(params=list(net.parameters()), weight_decay=wd)])
@wrong('decay_groups', 'their names end in `weight` too')
def by_their_names(net, wd):
    no = [p for name,p in net.named_parameters() if 'bn' in name or 'bias' in name]
    return [dict(params=[p for p in net.parameters() if all(p is not o for o in no)], weight_decay=wd),
            dict(params=no, weight_decay=0.)]
wrong('decay_groups', 'of convolutions and linear', grouped(lambda m,name: is_norm(m)))
wrong('decay_groups', '`BatchNorm1d`', grouped(lambda m,name: name=='bias' or isinstance(m, nn.BatchNorm2d)))
wrong('decay_groups', 'exchanged', grouped(lambda m,name: not spare(m, name)))
wrong('decay_groups', 'nothing is decayed', lambda net,wd: [dict(params=net.parameters(), weight_decay=0.)])
wrong('decay_groups', 'linear layers are spared', grouped(lambda m,name: not isinstance(m, nn.Conv2d) or name=='bias'))
wrong('decay_groups', '0.01: say', grouped(spare, {}))
wrong('decay_groups', 'in no group', lambda net,wd: grouped(spare)(net, wd)[:1])
wrong('decay_groups', 'in two groups', lambda net,wd: [dict(params=net.parameters(), weight_decay=wd),
                                                       *grouped(spare)(net, wd)[1:]])
wrong('decay_groups', 'came Parameter in it', lambda net,wd: [p for p in net.parameters() if p.ndim>1])
@wrong('decay_groups', 'the decay of 0.0.bias')
def of_the_top(net, wd):
    "Finds the norms of a flat net, and no others"
    no = [p for m in net.children() for name,p in m.named_parameters() if name=='bias' or is_norm(m)]
    return [dict(params=[p for p in net.parameters() if all(p is not o for o in no)], weight_decay=wd), dict(params=no, weight_decay=0.)]
wrong('decay_groups', 'the decay of 0.0.weight: expected 0.3, came 0.05', lambda net,wd: grouped(spare)(net, .05))
wrong('decay_groups', 'TypeError', lambda net,wd: wd)

# 09: eight effects from sixteen runs

right('main_effects', lambda plan,y: plan.T@y/(len(y)/2))
right('main_effects', lambda plan,y: [y[plan[:,i]==1].mean()-y[plan[:,i]==-1].mean() for i in range(plan.shape[1])])
@right('main_effects')
def least_squares(plan, y):
    x = np.column_stack([np.ones(len(plan)), plan])
    return pd.Series(2*np.linalg.solve(x.T@x, x.T@y)[1:])
@right('main_effects')
def with_torch(plan, y): return (tensor(plan).double()*tensor(y).double()[:,None]).mean(0)*2
for words,f in {
        'half of the effect': lambda plan,y: (plan*y[:,None]).mean(0),
        'the sums': lambda plan,y: plan.T@y,
        'have to be subtracted': lambda plan,y: [y[o>0].mean() for o in plan.T],
        'the sign': lambda plan,y: [y[o<0].mean()-y[o>0].mean() for o in plan.T],
        'which are half of all': lambda plan,y: [y[o>0].mean()-y.mean() for o in plan.T],
        'points of accuracy': lambda plan,y: 200*plan.T@y/len(y),
        '8 is built in': lambda plan,y: plan.T@y/8,
        'medians': lambda plan,y: [np.median(y[o>0])-np.median(y[o<0]) for o in plan.T],
        'the ratio': lambda plan,y: [y[o>0].mean()/y[o<0].mean() for o in plan.T],
        'one effect for each thing: expected shape (8,), came shape (16,)': lambda plan,y: plan.sum(1)*y,
        'expected shape (8,), came -0.07': lambda plan,y: plan[:,0]@y/8,
        'the values are off by up to': lambda plan,y: [y[o>0].max()-y[o<0].max() for o in plan.T],
        'for each thing, came {': lambda plan,y: {0:plan[:,0]@y},
        'ValueError': lambda plan,y: plan@y}.items(): wrong('main_effects', words, f)

# 10: a filter-normalised direction

def norms(w, dims=None): return torch.linalg.vector_norm(w, dim=dims or tuple(range(1,w.ndim)), keepdim=True)
@right('filter_normal')
def comprehension(ws, ds): return [torch.zeros_like(w) if w.ndim==1 else d/norms(d)*norms(w) for w,d in zip(ws, ds)]
@right('filter_normal')
def filter_by_filter(ws, ds):
    res = [torch.zeros(d.shape) for d in ds]
    for w,d,r in zip(ws, ds, res):
        if w.dim()>1:
            for i in range(len(w)): r[i] = d[i]*(w[i].norm()/d[i].norm())
    return res
@right('filter_normal')
def flattened(ws, ds):
    def one(w, d): return (F.normalize(d.flatten(1))*w.flatten(1).norm(dim=1)[:,None]).view_as(d)
    return tuple(one(w, d) if w.ndim>1 else 0*d for w,d in zip(ws, ds))

def directions(each, flat=lambda w,d: 0*d): return lambda ws,ds: [(flat if w.ndim<2 else each)(w, d)
                                                                 for w,d in zip(ws, ds)]
def whole_filters(w, d): return d*norms(w)/norms(d)
for words,f in {
        'each layer is as long': directions(lambda w,d: d*w.norm()/d.norm()),
        'one input channel gives': directions(lambda w,d:
            whole_filters(w.transpose(0,1), d.transpose(0,1)).transpose(0,1)),
        'each 3x3 kernel': directions(lambda w,d: d*norms(w, tuple(range(2,w.ndim)))/norms(d, tuple(range(2,w.ndim)))
                                      if w.ndim>2 else whole_filters(w, d)),
        'has length 1': directions(lambda w,d: d/norms(d)),
        'own length is still in it': directions(lambda w,d: d*norms(w)),
        'upside down': directions(lambda w,d: d*norms(d)/norms(w)),
        'the roots are missing': directions(lambda w,d: d*norms(w)**2/norms(d)**2),
        'as large as the weight': directions(lambda w,d: d.sign()*w.abs()),
        'biases and batch norms move': directions(whole_filters, lambda w,d: d),
        'their direction is 0': directions(whole_filters, lambda w,d: d*w.norm()/d.norm()),
        'norms move': directions(whole_filters, lambda w,d: d.sign()*w.abs()),
        'norms move; their': directions(whole_filters, lambda w,d: F.normalize(d, dim=0)),
        'linear layers stay': directions(lambda w,d: whole_filters(w, d) if w.ndim==4 else 0*d),
        'direction: the shape is right, the values are off': directions(lambda w,d: whole_filters(w, w)),
        'length: expected': directions(lambda w,d: 2*whole_filters(w, d)),
        'came shape (36, 4)': directions(lambda w,d: whole_filters(w, d).flatten(1).T),
        'expected a list of 2 tensors, came list': lambda ws,ds: directions(whole_filters)(ws, ds)[:1],
        'expected a list of 2 tensors, came Tensor': lambda ws,ds: torch.cat([d.flatten() for d in ds]),
        'TypeError': lambda ws: ws}.items(): wrong('filter_normal', words, f)

# 10: one filter

@right('one_filter')
def by_slices(conv, bn, k):
    for t in (conv.weight.data, bn.running_mean): t[:1] *= k
    bn.running_var[0] = k**2*(bn.running_var[0]+bn.eps) - bn.eps
@right('one_filter')
def by_mask(conv, bn, k):
    factor = torch.ones(conv.out_channels)
    factor[0] = k
    with torch.no_grad(): conv.weight.mul_(factor[:,None,None,None])
    bn.running_mean = bn.running_mean*factor
    bn.running_var = (bn.running_var+bn.eps)*factor.square() - bn.eps

def twin_of(weight=lambda w: w[:1], mean=lambda m: m[:1], var=lambda v: v[:1], power=2, eps=1, gamma=lambda g: g[:0]):
    def f(conv, bn, k):
        weight(conv.weight.data).mul_(k)
        mean(bn.running_mean).mul_(k)
        var(bn.running_var).mul_(k**power).add_(eps*(k**power-1)*bn.eps)
        gamma(bn.weight.data).div_(k)
    return f
def every(t): return t[:]
def none(t): return t[:0]
for words,f in {
        'not changed yet': twin_of(every, every, every),
        'first input channel': twin_of(lambda w: w[:,0]),
        'one weight is': twin_of(lambda w: w[0,0,0,0]),
        'those of the first channel only': twin_of(mean=every, var=every),
        'averages of one channel': twin_of(every),
        'the running averages stay': twin_of(mean=none, var=none),
        'the running mean stays': twin_of(mean=none),
        'the running variance stays': twin_of(var=none),
        'with the square': twin_of(power=1), 'square of k': twin_of(power=1, eps=0),
        'right but for `eps`': twin_of(eps=0),
        'gamma undoes': twin_of(var=none, gamma=lambda g: g[:1]),
        'expected the first': twin_of(lambda w: w[-1:], lambda m: m[-1:], lambda v: v[-1:]),
        'bn.running_var: expected [': twin_of(eps=-1),
        'a BatchNorm2d, 3.0': lambda conv,bn,k: by_slices(conv, bn, 10.),
        'nothing in `conv` has changed': lambda conv,bn,k: by_slices(deepcopy(conv), deepcopy(bn), k),
        'leaf Variable': lambda conv,bn,k: conv.weight[0].mul_(k)}.items(): wrong('one_filter', words, f)

# 10: fold a batch norm

@right('folded')
def new_conv(conv, bn):
    res = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                    groups=conv.groups)
    k = bn.weight.data*torch.rsqrt(bn.running_var+bn.eps)
    res.weight.data = torch.einsum('oikl,o->oikl', conv.weight.data, k)
    res.bias.data = bn.bias.data + k*((0 if conv.bias is None else conv.bias.data)-bn.running_mean)
    return res
@right('folded')
def by_probing(conv, bn):
    "The bias is what comes out for no input, the scale what a 1 adds to it"
    c = len(bn.weight)
    zero,one = (bn(torch.full((1,c,1,1), o))[0] for o in (0.,1.))
    bias = (one-zero)[:,0,0]*(torch.zeros(c) if conv.bias is None else conv.bias) + zero[:,0,0]
    weight = (one-zero)[...,None]*conv.weight
    return lambda x: F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)
@right('folded')
def pytorchs(conv, bn): return torch.nn.utils.fuse_conv_bn_eval(conv, bn)

def fold_of(scale=lambda bn: bn.weight/(bn.running_var+bn.eps).sqrt(), weight=lambda w,k: w*k.view(-1,1,1,1),
            bias=lambda b,bn,k: (b-bn.running_mean)*k+bn.bias, **other):
    def f(conv, bn):
        k,res = scale(bn),deepcopy(conv)
        b = torch.zeros(len(bn.weight)) if conv.bias is None else conv.bias
        res.weight,res.bias = nn.Parameter(weight(conv.weight, k)),nn.Parameter(bias(b, bn, k))
        for name,o in other.items(): setattr(res, name, o)
        return res
    return f
for words,f in {
        'divide by its root': fold_of(lambda bn: bn.weight/(bn.running_var+bn.eps)),
        '`eps` is missing': fold_of(lambda bn: bn.weight/bn.running_var.sqrt()),
        "Take the batch norm's own": fold_of(lambda bn: bn.weight/(bn.running_var+1e-5).sqrt()),
        'gamma is missing': fold_of(lambda bn: (bn.running_var+bn.eps).rsqrt()),
        'the running variance is missing': fold_of(lambda bn: bn.weight),
        'the running mean is missing': fold_of(bias=lambda b,bn,k: b*k+bn.bias),
        'beta is missing': fold_of(bias=lambda b,bn,k: (b-bn.running_mean)*k),
        'the bias is missing': fold_of(bias=lambda b,bn,k: 0*b),
        'before beta is added': fold_of(bias=lambda b,bn,k: b*k-bn.running_mean+bn.bias),
        'is added; subtract it': fold_of(bias=lambda b,bn,k: (b+bn.running_mean)*k+bn.bias),
        'own bias is missing': fold_of(bias=lambda b,bn,k: bn.bias-k*bn.running_mean),
        'own bias has to be scaled': fold_of(bias=lambda b,bn,k: b-k*bn.running_mean+bn.bias),
        'along the kernel': fold_of(weight=lambda w,k: w*k),
        'input channels': fold_of(weight=lambda w,k: w*k[:,None,None]),
        'stride and padding are lost': fold_of(stride=1, padding=0), 'the stride is lost': fold_of(stride=1),
        'the padding is lost': fold_of(padding=0), 'the groups are lost': fold_of(groups=1),
        'the batch norm is left out': lambda conv,bn: conv,
        'there is still a batch norm': lambda conv,bn: nn.Sequential(conv, bn),
        'expected a convolution, came 5': lambda conv,bn: 5,
        'off by up to': fold_of(weight=lambda w,k: w*k.view(-1,1,1,1)/2),
        'stops with': fold_of(lambda bn: bn.gamma)}.items(): wrong('folded', words, f)
wrong('folded', 'while both layers are still there', lambda conv,bn: lambda x: bn(conv(x)))
@wrong('folded', 'changes its argument: work on a copy')
def folded_in_place(conv, bn):
    k = bn.weight.data/(bn.running_var+bn.eps).sqrt()
    bias = bn.bias.data + (-bn.running_mean if conv.bias is None else conv.bias.data-bn.running_mean)*k
    conv.weight.data.mul_(k.view(-1,1,1,1))
    conv.bias = nn.Parameter(bias)
    return conv

# 10: how large is a map

right('map_size', height=7, width=10)
right('map_size', height=math.ceil(200/2**5), width=tensor(300/2**5).ceil())
for words,n in {'height: that is the other side':10, 'at each of the steps':6, 'part of a place':6.25,
                'after the pooling':1, 'height: that is the photo':200,
                'height: 14 is too large by a factor of 2':14}.items(): wrong('map_size', words, height=n, width=10)
for words,n in {'width: that is the other side':7, 'width: half a place':9,
                'width: there is no such thing as part':9.375,
                'that is after the pooling':1, 'width: that is the photo':300, 'width: 8 is too small':8}.items():
    wrong('map_size', words, height=7, width=n)
for words,k in {'a halving is missing':16, 'two halvings are missing':8, 'one too many':64}.items():
    for f in (math.ceil, float):
        wrong('map_size', words, height=f(200/k), width=10)
        wrong('map_size', words, height=7, width=f(300/k))

# 10: Grad-CAM

@right('grad_cam')
def by_backward(body, head, x, classes):
    grid = body(x).detach()
    grid.requires_grad = True
    head(grid).gather(1, classes.view(-1,1)).sum().backward()
    return F.relu(torch.einsum('bc,bchw->bhw', grid.grad.mean((-2,-1)), grid.detach()))
@right('grad_cam')
def photo_by_photo(body, head, x, classes):
    res = []
    for photo,c in zip(x, classes):
        grid = body(photo[None])
        grad, = torch.autograd.grad(head(grid)[0,c], grid)
        res.append((grad[0].flatten(1).mean(1)[:,None,None]*grid[0]).sum(0).clamp(min=0))
    return torch.stack(res)
@right('grad_cam')
def with_a_hook(body, head, x, classes):
    kept = []
    hook = body.register_forward_hook(lambda m,inp,out: kept.append(out))
    scores = nn.Sequential(body, head)(x)
    hook.remove()
    one_hot = F.one_hot(classes, scores.shape[1]).float()
    grad, = torch.autograd.grad(scores, kept, one_hot)
    return (F.adaptive_avg_pool2d(grad, 1)*kept[0]).sum(1).relu()

def cam_of(score=lambda s,c: s.gather(1, c[:,None]), weigh=lambda g,a: g.mean((2,3), keepdim=True),
           map=lambda o: o.sum(1).relu()):
    def f(body, head, x, classes):
        grid = body(x).detach().requires_grad_()
        score(head(grid), classes).sum().backward()
        return map(weigh(grid.grad, grid.detach())*grid.detach())
    return f
for words,f in {
        'the last step is a ReLU': cam_of(map=lambda o: o.sum(1)),
        'it comes after': cam_of(map=lambda o: o.relu().sum(1)),
        'is not averaged': cam_of(weigh=lambda g,a: g),
        'added up over the grid': cam_of(weigh=lambda g,a: g.sum((2,3), keepdim=True)),
        'the means of the channels': cam_of(weigh=lambda g,a: a.mean((2,3), keepdim=True)),
        'came the mean': cam_of(map=lambda o: o.mean(1).relu()),
        'are still an axis': cam_of(map=lambda o: o.sum(1, keepdim=True).relu()),
        'are not added up': cam_of(map=lambda o: o.relu()),
        'without their sign': cam_of(weigh=lambda g,a: g.mean((2,3), keepdim=True).abs()),
        'only the size': cam_of(weigh=lambda g,a: g.abs().mean((2,3), keepdim=True)),
        'the scores of all classes': cam_of(lambda s,c: s),
        'highest score': cam_of(lambda s,c: s.max(1).values),
        'takes all of them for each': cam_of(lambda s,c: s[:,c]),
        'add the scores up': cam_of(lambda s,c: s.gather(1, c[:,None]).mean()),
        'gradient of the loss': cam_of(lambda s,c: F.cross_entropy(s, c)),
        'expected that of the score': cam_of(lambda s,c: F.nll_loss(s.log_softmax(1), c, reduction='sum')),
        'of the probability': cam_of(lambda s,c: s.softmax(1)[range(len(c)),c]),
        'the shape is right, the values are off': cam_of(map=lambda o: o.sum(2).relu()),
        'off by up to': cam_of(map=lambda o: o.sum(1).relu().sqrt()),
        'RuntimeError': lambda body,head,x,classes: head(x)}.items(): wrong('grad_cam', words, f)
@wrong('grad_cam', 'the gradient alone')
def gradient_alone(body, head, x, classes):
    grid = body(x)
    return torch.autograd.grad(head(grid)[range(len(x)),classes].sum(), grid)[0].sum(1).relu()
@wrong('grad_cam', 'it weighs the channels of the grid')
def mean_gradient(body, head, x, classes):
    grid = body(x).detach().requires_grad_()
    head(grid)[range(len(x)),classes].sum().backward()
    return grid.grad.mean(1).clamp(min=0)

# predictions: any number is an answer, and what is none is refused in words

for name,guesses in dict(first_loss=(2.3,), shuffled=(0,85), growth=(4,), twice_size=(4,4), first_gradient=(5e5,)).items():
    right(name, *guesses)
    right(name, *(tensor(float(o)) for o in guesses))
    right(name, *(np.array([o+1.]) for o in guesses))
    for words,o in {'expected a number':'many', 'a guess is a number, not nan':math.nan, 'not inf':math.inf,
                    'not written yet':...}.items(): wrong(name, words, *[o]*len(guesses))

# a loss that will not fall

def small_net(n_out, softmax=None, end=None):
    body = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_out)] if end is None else end(n_out)
    return nn.Sequential(*body, *head, *([softmax] if softmax else []))
right('hunt_loss', small_net)
@right('hunt_loss')
class MeanAtTheEnd(nn.Module):
    def __init__(self, n_out):
        super().__init__()
        *self.parts,_,_,_ = small_net(n_out)
        self.parts,self.head = nn.ModuleList(self.parts),nn.Linear(32, n_out)
    def forward(self, x):
        for o in self.parts: x = o(x)
        return self.head(x.mean((2,3)))
def fixed_end(n_out): return [nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32*2*2, n_out)]
wrong('hunt_loss', 'not changed yet: 2 mistakes are left', partial(small_net, softmax=nn.Softmax(1), end=fixed_end))
wrong('hunt_loss', '1 mistake is left. One shows like this: with ten classes the loss', partial(small_net, softmax=nn.Softmax(dim=-1)))
wrong('hunt_loss', 'another size stops the net', partial(small_net, end=fixed_end))
wrong('hunt_loss', 'log-softmax does no harm', partial(small_net, softmax=nn.LogSoftmax(1)))
for pool,side in product((nn.AdaptiveMaxPool2d,nn.AdaptiveAvgPool2d), (1,2)):
    right('hunt_loss', partial(small_net, end=lambda n, pool=pool, side=side: [pool(side), nn.Flatten(), nn.Linear(32*side**2, n)]))
for pool,side in product((nn.AdaptiveMaxPool2d,nn.AdaptiveAvgPool2d), (1,2)):   # behind the pool that was there
    behind = partial(small_net, end=lambda n, pool=pool, side=side: [
        nn.MaxPool2d(4), pool(side), nn.Flatten(), nn.Linear(32*side**2, n)])
    right('hunt_loss', behind)
    wrong('hunt_loss', '1 mistake is left. One shows like this: with ten', partial(behind, softmax=nn.Softmax(1)))
wrong('hunt_loss', 'expected 5,466 parameters', partial(small_net, end=lambda n: [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(32*9, n)]))

# a block from a blog

right('hunt_block', block(partial(branch, gamma=1), strided))
class Blog(nn.Module):
    def __init__(self, ni, nf, stride=1, norms=(1,2), inside=noop, of='x'):
        super().__init__()
        self.conv1,self.conv2 = nn.Conv2d(ni, nf, 3, stride, 1, bias=False),nn.Conv2d(nf, nf, 3, 1, 1, bias=False)
        self.norm1,self.norm2 = nn.BatchNorm2d(nf),nn.BatchNorm2d(nf)
        self.proj = strided(*((ni,nf,stride) if of=='x' else (nf,nf,1)))
        if of!='x' and (ni!=nf or stride>1): self.proj = nn.Sequential(nn.Conv2d(nf, nf, 1, bias=False), nn.BatchNorm2d(nf))
        self.norms,self.inside,self.of,self.same = norms,inside,of,ni==nf and stride==1
    def forward(self, x):
        a,b = (getattr(self, f'norm{i}') for i in self.norms)
        out = self.inside(b(self.conv2(F.relu(a(self.conv1(x))))))
        return F.relu(out + (x if self.same else self.proj(x if self.of=='x' else out)))
right('hunt_block', Blog)
@right('hunt_block')
class ShortcutFirst(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.proj = nn.Sequential() if ni==nf and stride==1 else strided(ni, nf, stride)
        self.branch = branch(ni, nf, stride, gamma=1)
    def forward(self, x): return F.relu(self.branch(x) + self.proj(x))
wrong('hunt_block', 'not changed yet: 3 mistakes are left', partial(Blog, norms=(1,1), inside=F.relu, of='out'))
wrong('hunt_block', '2 mistakes are left', partial(Blog, inside=F.relu, of='out'))
wrong('hunt_block', 'the block can only add', partial(Blog, inside=F.relu))
wrong('hunt_block', 'never get a gradient', partial(Blog, norms=(1,1)))
wrong('hunt_block', 'nothing of the input gets past', partial(Blog, of='out'))

# who set expansion?

right('hunt_expansion', block(squeeze))
right('hunt_expansion', type('Mine', (Bottleneck,), {}))
wrong('hunt_expansion', 'not changed yet: 339,823,210', type('Mine', (ResBlock,), dict(expansion=4)))
wrong('hunt_expansion', 'that is ResNet-34', type('Mine', (ResBlock,), {}))
wrong('hunt_expansion', 'parameters; ResNet-50 has 23,547,754', block(partial(squeeze, inner=lambda ni,nf: nf//2)))
wrong('hunt_expansion', 'off by up to', block(partial(squeeze, act=nn.Tanh)))
wrong('hunt_expansion', 'not callable', lambda *a: 5)
wrong('hunt_expansion', 'Is `stride` used?', block(lambda ni,nf,stride: squeeze(ni, nf, 1)))

# version two of a blog

right('hunt_preact', PreAct)
right('hunt_preact', WithFunctions)
for words,f in {'not changed yet: 3 mistakes are left': lambda m,x: F.relu(m.branch(x) + path(m, x)),
                '2 mistakes are left': lambda m,x: m.branch(x) + path(m, x),
                'nothing on the path is negative': lambda m,x: F.relu(PreAct.forward(m, x)),
                'numbers of any size': lambda m,x: m.branch(m.a(x)) + path(m, x),
                'what they make is thrown away': lambda m,x: m.branch(x) + (m.short(m.a(x)) if m.short else x)}.items():
    wrong('hunt_preact', words, forward(f))

# the capstone

def conv_of_mine(ni, nf, ks, stride=1, act=True, bias=False):
    return nn.Sequential(nn.Conv2d(ni, nf, ks, stride, ks//2, bias=bias), nn.BatchNorm2d(nf), *[nn.ReLU()]*act)
class Block50(nn.Module):
    "Its shortcut comes first, and is run first"
    def __init__(self, ni, nf, stride, strides=lambda s: (1,s,1), gamma=0, around=around):
        super().__init__()
        n,(a,b,c) = nf//4,strides(stride)
        self.around = around(ni, nf, stride)
        self.branch = nn.Sequential(conv_of_mine(ni, n, 1, a), conv_of_mine(n, n, 3, b), conv_of_mine(n, nf, 1, c, False))
        nn.init.constant_(self.branch[-1][1].weight, gamma)
    def forward(self, x):
        short = self.around(x)
        return F.relu(short + self.branch(x))
def fifty(n_out, stem=((3,32,2),(32,32,1),(32,64,1)), pool=nn.MaxPool2d(3, 2, 1), layers=(3,4,6,3), end=(), **kwargs):
    parts,ni = [*[conv_of_mine(a, b, 3, s) for a,b,s in stem], pool],64
    for nf,n,stride in zip((256,512,1024,2048), layers, (1,2,2,2)):
        for i in range(n):
            parts.append(Block50(ni, nf, 1 if i else stride, **kwargs))
            ni = nf
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ni, n_out), *end)
right('capstone', fifty)
@right('capstone')
class Backwards(nn.Module):
    "Registered from its end, and run from its beginning, branch first"
    def __init__(self, n_out):
        super().__init__()
        *parts,_,_,self.head = fifty(n_out)
        self.stages = nn.ModuleList(parts[:3:-1])
        self.stem = nn.Sequential(*parts[:4])
    def forward(self, x):
        x = self.stem(x)
        for o in reversed(self.stages):
            y = o.branch(x)
            x = (y + o.around(x)).relu()
        return self.head(x.mean((2,3)))
for words,kw in {'the 3x3 should': dict(strides=lambda s: (s,1,1)), 'D pools first': dict(around=strided),
                 'gamma starts at 0 in 0 batch norms': dict(gamma=1), 'expected 23,547,754 parameters': dict(layers=(2,2,2,2)),
                 "the scores differ from those of timm's net": dict(pool=nn.AvgPool2d(3, 2, 1)), 'D takes the mean': dict(
                     around=partial(around, pool=partial(nn.MaxPool2d, ceil_mode=True)))}.items():
    wrong('capstone', words, partial(fifty, **kw))
wrong('capstone', 'expected a module, came list', lambda n: [*fifty(n)])
wrong('capstone', 'ten classes are built in', lambda n: fifty(10))
wrong('capstone', '1000 classes are built in', lambda n: fifty(1000))
@wrong('capstone', 'but not in the last one of each branch')
def first_norms_silent(n):
    m = fifty(n, gamma=1)
    for o in m.modules():
        if isinstance(o, Block50): nn.init.zeros_(o.branch[0][1].weight)
    return m
def with_norms(**kwargs):
    def f(n):
        m = fifty(n)
        for o in m.modules():
            for k,v in kwargs.items() if isinstance(o, nn.BatchNorm2d) else (): setattr(o, k, v)
        return m
    return f
class OwnInTraining(nn.BatchNorm2d):
    "Half the spread, in train mode only"
    def forward(self, x): return super().forward(x)/(1+self.training)
wrong('capstone', "right until it trains: its running averages move differently from timm's", with_norms(momentum=.5))
wrong('capstone', "right in eval mode; in train mode the scores differ from timm's", with_norms(__class__=OwnInTraining))
wrong('capstone', 'part of it comes from fastai.layers', lambda n: nn.Sequential(ConvLayer(3, 32, stride=2), *fifty(n)[1:]))
wrong('capstone', 'part of it comes from resnet_course', lambda n: type('Mine', (ResNet,), {})(n, [3,4,6,3], Bottleneck))
wrong('capstone', 'part of it comes from resnet_course', lambda n: resnet50(n))
wrong('capstone', 'part of it comes from torchvision.models', lambda n: torchvision.models.resnet50(num_classes=n))
