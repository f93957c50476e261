"Answers to the first lesson's exercise, as in `answers`"
from fastai.vision.all import *
from answers import right, wrong

def conv(n, **kwargs): return nn.Conv2d(n, n, 3, **{'padding':1, 'bias':False, **kwargs})

class Written(nn.Module):
    "Layer by layer"
    def __init__(self, n):
        super().__init__()
        self.conv1,self.bn1 = conv(n),nn.BatchNorm2d(n)
        self.conv2,self.bn2 = conv(n),nn.BatchNorm2d(n)
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)
right('first_block', Written)

@right('first_block')
class Grouped(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.way = nn.Sequential(conv(channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                                 conv(channels), nn.BatchNorm2d(channels))
        self.act = nn.ReLU()
    def forward(self, x): return self.act(x + self.way(x))

@right('first_block')
class Swapped(Written):
    "The second convolution registered first, and ReLU as clamp"
    def __init__(self, n):
        nn.Module.__init__(self)
        self.b = nn.Sequential(conv(n), nn.BatchNorm2d(n))
        self.a = nn.Sequential(conv(n), nn.BatchNorm2d(n), nn.ReLU())
    def forward(self, x): return torch.add(self.b(self.a(x)), x).clamp(min=0)

def variant(words, forward=None, **layers):
    "A wrong block: another `forward`, or layers of another kind"
    class Variant(Written):
        def __init__(self, n):
            super().__init__(n)
            for name,make in layers.items(): setattr(self, name, make(n))
        def branch(self, x): return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    if forward: Variant.forward = forward
    wrong('first_block', words, Variant)

def none(n): return nn.Identity()
variant('that is a plain block: the input', lambda s,x: F.relu(s.branch(x)))
variant('without its last ReLU', lambda s,x: s.branch(x))
variant('here it comes before', lambda s,x: F.relu(s.branch(x)) + x)
variant('after the sum is missing', lambda s,x: s.branch(x) + x)
variant('a ReLU too many', lambda s,x: F.relu(F.relu(s.branch(x)) + x))
variant('a ReLU cuts it off', lambda s,x: F.relu(s.branch(x) + x.relu()))
variant('goes through it, too', lambda s,x: F.relu(s.bn2(s.conv2(F.relu(s.bn1(s.conv1(x)))) + x)))
variant('subtracted', lambda s,x: F.relu(s.branch(x) - x))
variant('multiplied', lambda s,x: F.relu(s.branch(x) * x))
variant('beside the branch', lambda s,x: F.relu(torch.cat([s.branch(x),x], 1)))
variant('has one convolution', lambda s,x: F.relu(s.bn1(s.conv1(x)) + x), conv2=none, bn2=none)
variant('ReLU between', lambda s,x: F.relu(s.bn2(s.conv2(s.bn1(s.conv1(x)))) + x))
variant('both batch norms', bn1=none, bn2=none)
variant('first batch norm', bn1=none)
variant('last batch norm', bn2=none)
variant('have a bias', conv1=partial(conv, bias=True), conv2=partial(conv, bias=True))
variant('the sum does not fit', conv1=partial(conv, padding=0), conv2=partial(conv, padding=0))
variant('off by up to', lambda s,x: F.relu(s.branch(x) + .5*x))
variant('its gradient is not', lambda s,x: F.relu(s.branch(x) + x.detach()))

@wrong('first_block', 'one convolution is used twice')
class Twice(Written):
    def __init__(self, n):
        super().__init__(n)
        self.conv2 = self.conv1
