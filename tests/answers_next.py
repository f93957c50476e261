"Answers to the last lesson's exercises, as in `answers`"
from fastai.vision.all import *
from answers import right, wrong

# who wrote it

def author(reads=sum, first_too=True, then=lambda o: o):
    def scores(x, branches, read):
        written = [x]
        for b in branches: written.append(b(reads(written)))
        return torch.stack([read(o) for o in then(written[0 if first_too else 1:])])
    return scores
right('who_wrote', author())
@right('who_wrote')
def by_difference(x, branches, read):
    "What each adds to the scores, and the rows in a list"
    rows,before = [read(x)],read(x)
    for b in branches:
        x = x + b(x)
        rows.append(read(x)-before)
        before = read(x)
    return rows
@right('who_wrote')
def in_one_product(x, branches, read):
    stream,parts = x.clone(),[x]
    for b in branches:
        parts.append(b(stream))
        stream = stream + parts[-1]
    return torch.einsum('p...n,cn->p...c', torch.stack(parts), read.weight)

wrong('who_wrote', 'all branches read the first', author(reads=lambda o: o[0]))
wrong('who_wrote', 'has written; it reads the sum', author(reads=lambda o: o[-1]))
wrong('who_wrote', 'the first row is', author(first_too=False))
wrong('who_wrote', 'after each branch', author(then=lambda o: [sum(o[:i]) for i in range(1, len(o)+1)]))
wrong('who_wrote', 'those are the parts', lambda x,branches,read: author()(x, branches, nn.Identity()))
wrong('who_wrote', 'do not add up', lambda x,branches,read: author()(x, branches, lambda o: read(o).softmax(-1)))
wrong('who_wrote', 'should come first', lambda *args: author()(*args).transpose(0, 1))
wrong('who_wrote', 'one sum', lambda *args: author()(*args).sum(0, keepdim=True))
def rows(make): return lambda x,branches,read: make([*author()(x, branches, noop)], read)
wrong('who_wrote', 'the rows have different shapes, (4, 5) and (4, 8): `read`', rows(lambda o,read: [read(o[0]),*o[1:]]))
wrong('who_wrote', 'the rows have different shapes, (4, 8) and (4, 5): `read`', rows(lambda o,read: (o[0],*map(read, o[1:]))))
wrong('who_wrote', 'row 1 is None: expected scores', rows(lambda o,read: [read(o[0]),None,*map(read, o[2:])]))
wrong('who_wrote', 'row 0 is None: expected scores', rows(lambda o,read: [None,*map(read, o[1:])]))
@wrong('who_wrote', 'changes its argument')
def in_place(x, branches, read):
    rows = [read(x)]
    for b in branches:
        y = b(x)
        x += y
        rows.append(read(y))
    return torch.stack(rows)

# a layer of DenseNet

class Dense(nn.Module):
    "Layer by layer"
    def __init__(self, ni, growth):
        super().__init__()
        self.norm,self.conv = nn.BatchNorm2d(ni),nn.Conv2d(ni, growth, 3, padding=1, bias=False)
    def new(self, x): return self.conv(F.relu(self.norm(x)))
    def forward(self, x): return torch.cat((x, self.new(x)), dim=1)
right('dense_layer', Dense)
@right('dense_layer')
class Filled(Dense):
    "Into a tensor of zeros"
    def forward(self, x):
        y = self.new(x)
        res = x.new_zeros(len(x), x.shape[1]+y.shape[1], *x.shape[2:])
        res[:,:x.shape[1]],res[:,x.shape[1]:] = x,y
        return res

def dense(words, forward=None, **layers):
    class Variant(Dense):
        def __init__(self, ni, growth):
            super().__init__(ni, growth)
            for k,make in layers.items(): setattr(self, k, make(ni, growth))
    if forward: Variant.forward = forward
    wrong('dense_layer', words, Variant)
def cat(*o): return torch.cat(o, 1)
dense('only what is new', lambda s,x: s.new(x))
dense('it is added', lambda s,x: x+s.new(x))
dense('what is new comes first', lambda s,x: cat(s.new(x), x))
dense('the channels are axis 1', lambda s,x: torch.cat([x,s.new(x)], 2))
dense('has gone through the norm', lambda s,x: cat(y := s.norm(x).relu(), s.conv(y)))
dense('all that is negative', lambda s,x: cat(x.relu(), s.new(x)))
dense('the order of 2015', lambda s,x: cat(x, s.norm(s.conv(x)).relu()), norm=lambda ni,growth: nn.BatchNorm2d(growth))
dense('the ReLU comes before the norm', lambda s,x: cat(x, s.conv(s.norm(x.relu()))))
dense('the ReLU is missing', lambda s,x: cat(x, s.conv(s.norm(x))))
dense('the norm is missing', norm=lambda *_: nn.Identity())
dense('norm and ReLU are missing', lambda s,x: cat(x, s.conv(x)), norm=lambda *_: nn.Identity())
dense('has a bias', conv=lambda ni,growth: nn.Conv2d(ni, growth, 3, padding=1))
dense('`padding=1`', conv=lambda ni,growth: nn.Conv2d(ni, growth, 3, bias=False))

# without its branch

def changed(change, i=0):
    def f(net, stage, k):
        net = deepcopy(net)
        blocks = getattr(net, stage)
        blocks[k+i] = change(blocks[k+i]) or blocks[k+i]
        return net
    return f
def fill(what):
    def change(blk):
        for t in what(blk): nn.init.zeros_(t)
    return change
right('no_branch', changed(fill(lambda o: o.branch[-1][1].parameters())))
@right('no_branch')
def by_a_hook(net, stage, i):
    net = deepcopy(net)
    getattr(net, stage)[i].branch.register_forward_hook(lambda m,x,y: torch.zeros_like(y))
    return net
@right('no_branch')
def by_its_shortcut(net, stage, i):
    net = deepcopy(net)
    blocks = getattr(net, stage)
    blocks[i] = nn.Sequential(blocks[i].shortcut, nn.ReLU())
    return net
wrong('no_branch', 'the net computes what it did', lambda net,stage,i: deepcopy(net))
wrong('no_branch', 'keep the shortcut', changed(lambda o: nn.Identity()))
wrong('no_branch', 'ReLU after the sum is missing', changed(lambda o: o.shortcut))
wrong('no_branch', 'beta of that batch norm', changed(fill(lambda o: [o.last_norm.weight])))
wrong('no_branch', 'makes a constant', changed(fill(lambda o: [o.branch[-1][0].weight])))
wrong('no_branch', 'counted from 0', changed(fill(lambda o: o.last_norm.parameters()), -1))
wrong('no_branch', 'expected a net, came', lambda net,stage,i: getattr(net, stage)[i].shortcut(torch.zeros(1,64,8,8)))
@wrong('no_branch', 'the net itself has changed: work on a copy')
def on_the_net_itself(net, stage, i):
    for p in getattr(net, stage)[i].last_norm.parameters(): nn.init.zeros_(p)
    return net
@wrong('no_branch', 'the net itself has changed: work on a copy')
def a_hook_on_the_net(net, stage, i):
    getattr(net, stage)[i].branch.register_forward_hook(lambda m,x,y: torch.zeros_like(y))
    return net
@wrong('no_branch', 'the net itself has changed: work on a copy')
def its_forward(net, stage, i):
    blk = getattr(net, stage)[i]
    blk.forward = lambda x: blk.shortcut(x).relu()
    return deepcopy(net)
@wrong('no_branch', 'the net itself has changed: work on a copy')
def copied_not_deep(net, stage, i):
    "Another net of the same blocks, none of which fits any more"
    net = copy(net)
    getattr(net, stage)[i] = nn.Flatten()
    return net
@wrong('no_branch', 'changes its argument')
def counts_on(net, stage, i):
    "One more batch is counted in the net itself, which no score shows"
    net.stem[0][1].num_batches_tracked.add_(1)
    return by_a_hook(net, stage, i)
