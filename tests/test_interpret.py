"Loss surfaces, class maps and other sizes: against plain re-implementations, and what a user can do wrong"
import json
import pytest, torch
from fastai.vision.all import *
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from resnet_course import cli, interpret, landscape
from resnet_course.kit.sample import make_sample
from resnet_course.kit.arrays import array_dls, load_arrays
from resnet_course.kit.results import results
from resnet_course.data import get_data
from resnet_course.training import Experiment, get_learner
from resnet_course.fcn import get_fcn
from resnet_course.resnet import resnet18
from resnet_course.bottleneck import resnet50
from resnet_course.degradation import cifar_resnet, degradation_experiment
from resnet_course.classics import resnet_b, resnet_v1
from resnet_course.d2l import d2l_resnet18
from resnet_course.keras_net import keras_resnet50
from resnet_course.preact import preact_resnet
from resnet_course.loading import cached_data
from resnet_course.speed import speed_up
from resnet_course.landscape import (filter_direction, fold_norms, landscape_experiment, mean_loss,
                                     plot_surfaces, surface)
from resnet_course.interpret import accuracy_by_size, class_maps, show_map, sizes_experiment
from typer.testing import CliRunner
from conftest import one_line, randomise_bn, tiny_learner

file = Path('out/surface.json')

def batch(n=12, size=16, c_in=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, c_in, size, size, generator=g),torch.randint(10, (n,), generator=g)

def lived_in(net):
    "`net` with norms that are not fresh: each has another gamma, beta, mean and variance in each channel"
    torch.manual_seed(3)
    return randomise_bn(net).eval()

def small_net():
    torch.manual_seed(2)
    return lived_in(get_fcn(10, widths=(4,8)))

nets = dict(fcn=get_fcn, resnet18=resnet18, resnet50=resnet50, resnet_b=partial(resnet_b, 18),
            resnet_v1=partial(resnet_v1, 50), d2l=lambda n: d2l_resnet18(1, n), preact=partial(preact_resnet, 18),
            cifar=lambda n: cifar_resnet(8, n_out=n), plain=lambda n: cifar_resnet(8, False, n_out=n))

def surf(net=None, xs=(-1,0,1), ys=(-.5,.5), data=None, **kwargs):
    "A surface of 3 by 2 points"
    return surface(net or small_net(), *(data or batch()), file, xs, ys, **{'bf16':False, **kwargs})

# Directions

def numpy_direction(net, seed):
    "Li et al., section 4, filter by filter"
    g,res = torch.Generator().manual_seed(seed),[]
    for p in net.parameters():
        w = p.detach().double().numpy()
        d = np.zeros_like(w)
        if w.ndim>1:
            d = torch.randn(p.shape, generator=g).double().numpy()
            for i in range(len(w)): d[i] *= np.sqrt((w[i]**2).sum())/np.sqrt((d[i]**2).sum())
        res.append(d)
    return res

@pytest.mark.parametrize('name', ['fcn','cifar','d2l'])
def test_direction_by_hand(name):
    net = nets[name](10)
    for d,want in zip(filter_direction(net, 5), numpy_direction(net, 5), strict=True):
        assert np.allclose(d, want, atol=1e-6)

def test_direction_leaves_the_global_generator_alone():
    net = small_net()
    before = torch.get_rng_state()
    filter_direction(net, 0)
    assert torch.equal(torch.get_rng_state(), before)

# Folding

@pytest.mark.parametrize('name', nets)
def test_folding_changes_nothing(name):
    net = lived_in(nets[name](10))
    x = batch(2, 48, 1 if name=='d2l' else 3)[0]
    before = {k:v.clone() for k,v in net.state_dict().items()}
    folded = fold_norms(net)
    with torch.no_grad(): a,b = net(x),folded(x)
    assert (a-b).abs().max() <= 1e-4*a.abs().max()
    assert all(torch.equal(before[k], v) for k,v in net.state_dict().items())
    count = lambda m: sum(isinstance(o, nn.BatchNorm2d) for o in m.modules())
    assert count(folded)==0 if name!='preact' else 0<count(folded)<=count(net)

def test_fast_norms_stay():
    "They have taken in the ReLU and the sum that follow them"
    for make in (get_fcn, resnet18):
        net = speed_up(lived_in(make(10)))
        x = batch(2, 48)[0]
        with torch.no_grad(): assert (net(x)-fold_norms(net)(x)).abs().max() <= 1e-4*net(x).abs().max()

def test_a_norm_that_follows_no_convolution_stays():
    net = lived_in(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3,4,3), nn.ReLU(), nn.BatchNorm2d(4)))
    x = batch()[0]
    assert torch.equal(fold_norms(net)(x), net(x))

# Surfaces

def by_hand(net, x, y, seeds=(0,1), data=None):
    xb,yb = data or batch()
    at = deepcopy(net).eval()
    with torch.no_grad():
        for p,a,b in zip(at.parameters(), *(numpy_direction(net, o) for o in seeds)):
            p += torch.tensor(x*a + y*b).float()
        return -at(xb).log_softmax(1)[range(len(yb)),yb].mean().item()

@pytest.mark.parametrize('seeds', [(0,1), (7,3)])
def test_points_by_hand(seeds):
    net,xs,ys = small_net(),(-1,-.3,0,1),(-.5,.25)   # not a square
    rec = surf(net, xs, ys, seeds=seeds)
    want = [[by_hand(net, x, y, seeds) for x in xs] for y in ys]
    assert np.allclose(rec['surface']['losses'], want, rtol=1e-4)

def test_more_images_than_a_batch():
    net,data = small_net(),batch(150)
    assert np.isclose(surf(net, (0,), (0,), data)['surface']['losses'][0][0], by_hand(net, 0, 0, data=data), rtol=1e-4)

@pytest.mark.parametrize('net', [get_fcn(10, lambda ni,nf: nn.Conv2d(ni, nf, 3), (4,)),
                                 nn.Sequential(nn.Flatten(), nn.Linear(3*16*16,10))], ids=['conv','linear'])
def test_a_net_without_norms(net):
    assert np.isclose(surf(net)['surface']['losses'][0][2], by_hand(net, 1, -.5), rtol=1e-4)

def test_one_direction():
    rec = surf(ys=(0,))
    assert np.shape(rec['surface']['losses'])==(1,3)
    assert np.isclose(rec['surface']['losses'][0][0], by_hand(small_net(), -1, 0), rtol=1e-4)

def test_the_net_is_left_alone():
    net = small_net().train()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    surf(net)
    assert net.training and all(torch.equal(before[k], v) for k,v in net.state_dict().items())

def test_ten_times_the_weights():
    "Before a batch norm the size of the weights has no meaning, and so must not be in the picture"
    net = lived_in(cifar_resnet(8))
    twin = deepcopy(net)
    for seq in [m for m in twin.modules() if isinstance(m, nn.Sequential)]:
        for conv,bn in pairwise(seq.children()):
            if isinstance(bn, nn.BatchNorm2d):
                conv.weight.data *= 10
                bn.running_mean *= 10
                bn.running_var.mul_(100).add_(99*bn.eps)
    a = surf(net)['surface']['losses']
    file.unlink()
    assert np.allclose(a, surf(twin)['surface']['losses'], rtol=1e-3)

def test_bf16_is_near():
    net = small_net()
    rec = surf(net)
    a = np.array(rec['surface']['losses'])
    assert rec['surface']['precision']=='fp32'
    file.unlink()
    b = np.array(surf(net, bf16=True)['surface']['losses'])
    assert (a!=b).any() and np.allclose(a, b, rtol=.03)

class Stop(Exception): pass

@pytest.mark.parametrize('n', [0, 1, 3, 4, 5])
def test_stopped_and_resumed(n, monkeypatch):
    "The points that were there are not computed again, and all are the same numbers, bit for bit"
    whole = surf(about=dict(model='m'))
    file.unlink()
    calls = []
    def counted(*args, **kwargs):
        if len(calls)==n: raise Stop
        calls.append(1)
        return mean_loss(*args, **kwargs)
    monkeypatch.setattr(landscape, 'mean_loss', counted)
    with pytest.raises(Stop): surf(about=dict(model='m'))
    if n:
        rec = json.loads(file.read_text())
        assert not rec['complete'] and sum(o is not None for row in rec['surface']['losses'] for o in row)==n
        assert rec['surface']['losses'][0][:n]==whole['surface']['losses'][0][:n]
    else: assert not file.exists()
    del calls[:]
    monkeypatch.setattr(landscape, 'mean_loss', lambda *args, **kwargs: calls.append(1) or mean_loss(*args, **kwargs))
    rec = surf(about=dict(model='m'))
    assert len(calls)==6-n and rec['complete'] and rec['surface']['losses']==whole['surface']['losses']
    assert json.loads(file.read_text())==rec
    del calls[:]
    assert surf(about=dict(model='m'))==rec and not calls   # nothing is left to do

@pytest.mark.parametrize('change, said', [
    (dict(net=lived_in(get_fcn(10, widths=(8,8)))), 'fingerprint'), (dict(data=batch(11)), 'images, fingerprint'),
    (dict(xs=(-1,0,.9)), 'xs'), (dict(ys=(0,)), 'ys'), (dict(seeds=(0,2)), 'seeds'), (dict(bf16=True), 'precision'),
    (dict(about=dict(model='another')), 'model')], ids=['net','data','xs','ys','seeds','precision','about'])
def test_a_file_of_another_surface(change, said):
    surf(about=dict(model='m'))
    before = file.read_bytes()
    with pytest.raises(Exception) as err: surf(**{'about':dict(model='m'), **change})
    assert one_line(err, file, f'({said} differ)', 'delete it') and file.read_bytes()==before

def test_one_weight_makes_another_surface():
    net = small_net()
    surf(net)
    net[0][0].weight.data[0,0,0,0] += 1e-6
    with pytest.raises(Exception) as err: surf(net)
    assert one_line(err, 'fingerprint')

def test_the_same_weights_without_sums_are_another_net():
    net,plain = cifar_resnet(8),cifar_resnet(8, False)
    plain.load_state_dict(net.state_dict())
    surf(net)
    with pytest.raises(Exception) as err: surf(plain)
    assert one_line(err, 'fingerprint')

@pytest.mark.parametrize('text', ['', '{"surface": {"lo', '[]', '{}', '{"surface": 3}', 'null'])
def test_a_file_that_is_no_surface(text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(Exception) as err: surf()
    assert one_line(err, file, 'not a complete record', 'delete it') and file.read_text()==text

def test_nothing_but_the_record_is_left():
    surf()
    assert [o.name for o in Path('out').iterdir()]==['surface.json']

def test_plots():
    rec = dict(surf(), model='small')
    rec['surface']['losses'][0][0] = 1e9
    axs = plot_surfaces([rec,rec], top=20).axes
    assert [ax.get_title() for ax in axs]==['small','','small','','']   # the last is the scale, of all
    assert axs[0].get_xlabel() and axs[0].get_ylabel() and axs[1].get_zlabel()==axs[-1].get_ylabel()=='loss'
    assert axs[0].get_xlim()==(-1,1) and axs[0].get_ylim()==(-.5,.5)
    filled,lines = axs[0].collections
    assert max(lines.levels)<lines.zmax==20==max(filled.levels) and len(lines.levels)>10
    assert axs[2].collections[0].levels.tolist()==filled.levels.tolist()

# The experiment

def inspection(drawn, looks, fail=False):
    x = torch.randint(256, (40,3,8,8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(40)%10
    def look(learn, rec, file):
        looks.append({k:v.clone() for k,v in learn.model.state_dict().items()})
        if fail: raise Stop
        return dict(rec, seen=learn.model[-1].bias.tolist())
    return Experiment('looks', 'small', dict(fcn=partial(get_fcn, widths=(4,))), size=8, epochs=1, lr=1e-2, data=drawn,
        loaders=lambda path: array_dls((x,y,x,y,[*range(10)]), path, 8), after=look)

looked = Path('runs/looks/fcn-small-s42.json')
def weights(): return torch.load(looked.with_suffix('.pt'), weights_only=True)['model']
def no_training(monkeypatch): monkeypatch.setattr(Learner, 'one_batch', None)

def test_what_was_trained_is_looked_at(drawn):
    looks = []
    rec = inspection(drawn, looks).run('fcn')
    assert rec['complete'] and rec['model']=='fcn' and 'seen' in rec
    for k,v in weights().items(): assert torch.equal(looks[0][k].cpu(), v)
    assert rec==json.loads(looked.read_text())
    assert looks[0]['0.1.num_batches_tracked']==5   # trained, not fresh

def test_resuming_looks_again_and_trains_nothing(drawn, monkeypatch):
    looks = []
    with pytest.raises(Stop): inspection(drawn, looks, fail=True).run('fcn')
    assert not json.loads(looked.read_text())['complete'] and len(results(looked.parent))==0
    no_training(monkeypatch)
    rec = inspection(drawn, looks).run('fcn', resume=True)
    assert rec['complete'] and all(torch.equal(looks[0][k], looks[1][k]) for k in looks[0])

def test_a_finished_look_is_kept_and_one_without_checkpoint_made_anew(drawn):
    looks = []
    rec = inspection(drawn, looks).run('fcn')
    assert inspection(drawn, looks).run('fcn', resume=True)==rec and len(looks)==1
    looked.write_text(json.dumps({k:v for k,v in rec.items() if k!='seen'}|dict(complete=False)))
    looked.with_suffix('.pt').unlink()
    assert inspection(drawn, looks).run('fcn', resume=True)['seen']==rec['seen'] and len(looks)==2

def test_with_overwrite_all_is_made_anew(drawn):
    looks = []
    looked.parent.mkdir(parents=True)
    looked.write_text('of an earlier run')
    for _ in range(2): inspection(drawn, looks).run('fcn', overwrite=True)
    assert len(looks)==2 and json.loads(looked.read_text())['complete']

def test_the_landscape_experiment(monkeypatch, tmp_path):
    "Trains as the degradation lesson does; the middle of the picture is the loss of the trained weights on training pictures"
    assert {k:getattr(landscape_experiment,k) for k in ('nets','epochs','lr','data','loaders','recipe','fit')} == \
           {k:getattr(degradation_experiment,k) for k in ('nets','epochs','lr','data','loaders','recipe','fit')}
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(make_sample(tmp_path/'drawn', n_train=60, n_val=20, size=32)))
    monkeypatch.setattr(landscape, 'surface', partial(shrunk, landscape.surface))
    exp = replace(landscape_experiment, epochs=1, nets=dict(tiny=partial(cifar_resnet, 8, True, 'A')))
    rec = exp.run('tiny', out=Path('out/landscape'))
    assert rec['complete'] and rec['surface']['images']==60
    assert rec['command'].startswith('resnet_course experiment landscape ')
    assert len(results('out/landscape'))==1
    x,y,*_ = load_arrays(tmp_path/'drawn')
    net = cifar_resnet(8).eval()
    net.load_state_dict(torch.load('out/landscape/tiny-sgd-s42.pt', weights_only=True)['model'])
    mean,std = (tensor(o)[:,None,None] for o in cifar_stats)
    with torch.no_grad(): loss = F.cross_entropy(net((x/255-mean)/std), y).item()
    assert np.isclose(rec['surface']['losses'][0][1], loss, rtol=.02)

def test_by_the_command(monkeypatch, tmp_path):
    "The command goes on with a picture that was stopped"
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(make_sample(tmp_path/'drawn', n_train=60, n_val=20, size=32)))
    monkeypatch.setattr(landscape, 'surface', partial(shrunk, landscape.surface))
    monkeypatch.setitem(cli.experiments, 'landscape', 'landscape')
    monkeypatch.setattr(landscape, 'landscape_experiment',
        replace(landscape_experiment, nets=dict(tiny=partial(cifar_resnet, 8, True, 'A'))))
    def stopped(*args): raise KeyboardInterrupt
    monkeypatch.setattr(landscape, 'mean_loss', stopped)
    args = ['experiment','landscape','--epochs','1','--out','out/landscape']
    res = CliRunner().invoke(cli.app, args)
    assert res.exit_code==130 and 'add --resume' in res.output and len(results('out/landscape'))==0
    monkeypatch.setattr(landscape, 'mean_loss', mean_loss)
    no_training(monkeypatch)   # again
    res = CliRunner().invoke(cli.app, [*args,'--resume'])
    assert res.exit_code==0 and 'tiny' in res.output and Path('out/landscape/curves.png').exists()
    assert len(results('out/landscape'))==1

def shrunk(surface, model, xb, yb, file, xs, ys, **kwargs):
    "Two points of it; the images are the training set's, as the net was trained on them, each with its label"
    x,y,*_ = load_arrays(os.environ['RESNET_COURSE_CIFAR10'])
    mean,std = (tensor(o)[:,None,None] for o in cifar_stats)
    far,which = (xb[:,None]-(x/255-mean)/std).abs().flatten(2).max(2).values.min(1)
    assert far.max()<1e-4 and len(set(which.tolist()))==60 and torch.equal(yb, y[which])
    assert len(xs)==len(ys)==25 and xs[0]==-1 and xs[-1]==1
    return surface(model, xb, yb, file, (-1,0), (0,), **kwargs)

# Class maps

@pytest.mark.parametrize('name', nets)
def test_maps_add_up_to_the_score(name):
    net = lived_in(nets[name](7))
    x = torch.randn(2, 1 if name=='d2l' else 3, 96, 40)
    maps = class_maps(net, x)
    with torch.no_grad(): score = net(x)
    assert maps.shape[:2]==(2,7) and maps.shape[2]>maps.shape[3]>0 and not maps.requires_grad
    assert (maps.mean((2,3))+[m for m in net.modules() if isinstance(m, nn.Linear)][-1].bias-score).abs().max() <= 1e-4*score.abs().max()

def test_a_map_is_the_head_at_each_place():
    net,x = small_net(),batch(2, 20)[0]
    grid = net[1](net[0](x)).detach()
    maps = class_maps(net, x)
    for i in range(5):
        for j in range(5):
            assert torch.allclose(maps[:,:,i,j], grid[:,:,i,j]@net[-1].weight.T, atol=1e-5)

@pytest.mark.parametrize('training', [True, False])
def test_maps_leave_the_net_alone(training):
    net = small_net().train(training)
    before = {k:v.clone() for k,v in net.state_dict().items()}
    want = class_maps(deepcopy(net).eval(), batch()[0])
    assert torch.equal(class_maps(net, batch()[0]), want) and net.training==training
    assert all(torch.equal(before[k], v) for k,v in net.state_dict().items())

@pytest.mark.parametrize('net, ends', [
    (keras_resnet50, 'Flatten'), (lambda: nn.Sequential(nn.Conv2d(3,4,3)), 'in Conv2d:'),
    (lambda: nn.Conv2d(3,4,3), 'no class maps'),
    (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12,2)), 'AdaptiveAvgPool2d'),
    (lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3,2)), 'AdaptiveMaxPool2d')])
def test_a_net_without_the_head(net, ends):
    with pytest.raises(Exception) as err: class_maps(net(), batch()[0])
    assert one_line(err, ends, 'it must end in AdaptiveAvgPool2d(1), Flatten, Linear')

def test_show_map():
    _,axs = plt.subplots(1, 2)
    show_map(torch.rand(3,8,12), tensor([[-1.,3.],[0.,2.]]), axs[0], 'a')
    below,above = axs[0].images
    assert above.get_clim()==(-3,3) and tuple(above.get_extent())==tuple(below.get_extent())==(-.5,11.5,7.5,-.5)
    heat,alpha = above.get_array(),above.get_alpha()
    assert heat.shape==alpha.shape==(8,12) and np.allclose(alpha, .8*abs(heat)/3)   # clear where nothing counts
    show_map(torch.rand(3,8,12), torch.zeros(2,2), axs[1])   # a map of nothing has a scale too
    assert axs[1].images[1].get_clim()==(-1,1)
    assert show_map(torch.rand(3,8,12), torch.full((2,2), 9.), axs[1], top=6.).get_clim()==(-6,6)
    assert axs[1].images[-1].get_alpha().max()<=.8

# Other sizes

def loaders(drawn):
    x,y = torch.randint(256, (20,3,24,24), dtype=torch.uint8),torch.arange(20)%10
    return dict(photos=lambda: get_data(drawn, presize=32, resize=24, bs=16),
                arrays=lambda: array_dls((x,y,x,y,[*range(10)]), drawn, 8),
                cached=lambda: cached_data(drawn, presize=32, resize=24, bs=16, cache=False))

@pytest.mark.parametrize('kind', ['photos','arrays','cached'])
def test_accuracy_by_size(kind, drawn):
    "At each size it is what comes out when the pictures are resized by hand; at their own size they are left alone"
    set_seed(0)
    dls = loaders(drawn)[kind]()
    learn = get_learner(dls, get_fcn(10, widths=(8,8)), 'fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    table = accuracy_by_size(learn, [24,16,40])
    assert table.index.tolist()==[24,16,40] and table.columns.tolist()==['accuracy','loss']
    xb,yb = (torch.cat([b[i].as_subclass(Tensor) for b in dls.valid]) for i in (0,1))
    net = learn.model.eval()
    for size,row in table.iterrows():
        x = xb if size==24 else F.interpolate(xb, (size,size), mode='bilinear', antialias=True)
        with torch.no_grad(): out = net(x)
        assert np.isclose(row.loss, F.cross_entropy(out, yb).item(), rtol=1e-4)
        assert np.isclose(row.accuracy, (out.argmax(1)==yb).float().mean().item())

def test_other_images_and_the_learner_is_left_alone(drawn):
    learn = tiny_learner(drawn)
    before = [type(o) for o in learn.cbs],learn.dls
    dl = learn.dls.test_dl(get_image_files(drawn/'train'), with_labels=True)
    loss = accuracy_by_size(learn, [32], dl).loss.item()
    assert np.isclose(loss, learn.get_preds(dl=dl, with_loss=True)[2].mean(), rtol=1e-4)
    assert not np.isclose(loss, accuracy_by_size(learn, [32]).loss.item(), rtol=1e-4)
    assert ([type(o) for o in learn.cbs],learn.dls)==before

def test_a_net_of_one_size(drawn):
    dls = get_data(drawn, presize=32, resize=32, bs=16)
    learn = get_learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)), 'fp32')
    with pytest.raises(Exception) as err: accuracy_by_size(learn, [32,16])
    assert one_line(err, '16 px', 'pooled head')
    assert not any(isinstance(o, interpret._Resized) for o in learn.cbs)

def test_the_sizes_experiment(drawn, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_DATA', 'nowhere')   # `reproduce` gives the folder
    def seen(learn, sizes, dl):
        assert dl.one_batch()[0].shape==(24,3,224,224) and not dl.shuffle   # all of the validation set, at its largest
        return accuracy_by_size(learn, sizes, dl)
    monkeypatch.setattr(interpret, 'accuracy_by_size', seen)
    small = replace(sizes_experiment, nets=dict(fcn=partial(get_fcn, widths=(8,8))), epochs=1, data=drawn)
    rec = small.run('fcn', out=Path('out/sizes'))
    rows = pd.DataFrame(rec['sizes'])
    assert rows['size'].tolist()==[64,80,96,112,128,144,160,176,192,224] and rows.accuracy.between(0,1).all()
    assert rec['size']==128 and rec['complete'] and len(results('out/sizes'))==1
    assert list(sizes_experiment.nets)==['resnet18'] and (sizes_experiment.epochs,sizes_experiment.lr)==(5,3e-3)

def test_a_net_that_keeps_more_than_tensors():
    class Keeps(nn.Module):
        def __init__(self, note):
            super().__init__()
            self.note = note
        def forward(self, x): return x
        def get_extra_state(self): return dict(note=self.note)
        def set_extra_state(self, state): self.note = state['note']
    def net(note):
        set_seed(0)
        return nn.Sequential(*small_net(), Keeps(note)).eval()
    rec = surf(net('a'))
    assert surf(net('a'))==rec
    with pytest.raises(Exception) as e: surf(net('b'))
    assert one_line(e, str(file))
