"One's own nets and photos: what is trained is kept, what cannot be is refused first, and prediction sees what was validated"
import shlex
import pytest, torch
from dataclasses import asdict, replace
from fastai.vision.all import *
from resnet_course import recipe as lesson
from resnet_course.data import batch_for, run_settings
from resnet_course.fcn import get_fcn
from resnet_course.resnet import resnet18
from resnet_course.ingredients import Averaged, EMA, kept, with_activation
from resnet_course.kit.files import load_json
from resnet_course.kit.weights import check_net
from resnet_course.resblock import ResBlock
from resnet_course.recipe import (epoch_sizes, load_trained, Recipe, recipe, recipe_data, recipe_net, recipes, resized, save_weights,
                                  suited, train, Trained)
from resnet_course.training import get_learner
from conftest import CtrlC, one_line, photo_set

base = Recipe('test', model='fcn', epochs=1, size=32, presize=40, bs=8, min_scale=.6)

def noise(file, size, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (*size[::-1],3), dtype=np.uint8)
    Image.fromarray(x).resize(size).save(file)

@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Photos of many shapes: large and small, wide and tall, of odd sides"
    path,sizes = tmp_path_factory.mktemp('odd')/'set',[(300,211),(160,161),(41,90),(33,500),(64,64),(227,224),(17,19)]
    for split in ('train','val'):
        for c in ('ant','bee'):
            for i,size in enumerate(sizes): noise(path/split/c/f'{i}.png', size, i+10*(c=='bee')+100*(split=='val'))
    return path

# --- the same pixels --------------------------------------------------------------------------------------------
everything = {**recipes, 'tall':replace(base, min_scale=None, size=33, presize=40), 'middle':replace(base,
    min_scale=None, val='middle', size=48, presize=40), 'larger':replace(base, size=64, presize=40, val='middle'),
    'growing':replace(base, start_size=16)}

@pytest.mark.parametrize('name', everything)
def test_prediction_sees_what_was_validated(odd, name):
    "Pixel for pixel"
    r = replace(everything[name], hold_out=0.)   # those are photos of the training set
    dls = recipe_data(odd, r)
    validated = torch.cat([xb for xb,_ in dls.valid])
    files = get_image_files(odd/'val').sorted()
    seen = torch.cat(list(Trained(nn.Linear(1,1), dls.vocab, r).batches(files)))
    assert seen.shape==(14,3,r.size,r.size) and (seen.as_subclass(Tensor)==validated.as_subclass(Tensor)).all()

@pytest.mark.parametrize('change', [dict(min_scale=None), dict(min_scale=None, val='middle'), dict(val='middle'),
                                    dict(start_size=16, ema=.5)], ids=str)
def test_a_record_s_accuracy_is_that_of_the_predictions(odd, change):
    "From the file on the disk"
    r = replace(base, epochs=2, lr=1e-2, **change)
    rec = train(odd, r, out='out', precision='fp32')
    files = get_image_files(odd/'val').sorted()
    got = load_trained(f"out/{rec['name']}.safetensors").predict(files)
    assert np.isclose((got['class']==[f.parent.name for f in files]).mean(), rec['accuracy'])

def test_one_photo_or_many(odd):
    "However it is given; an open file is one photo, not a list of its lines"
    train(odd, base, epochs=1, out='out', precision='fp32')
    trained = load_trained(first(Path('out').glob('*.safetensors')))
    f = get_image_files(odd/'val').sorted()[0]
    expected = trained.predict(f)['class'].tolist()
    with open(f, 'rb') as opened:
        for o in (str(f), f.read_bytes(), bytearray(f.read_bytes()), memoryview(f.read_bytes()), opened, io.BytesIO(f.read_bytes()), Image.open(f), [f], (f,), iter([f]),
                  pd.Series([f])):
            assert trained.predict(o)['class'].tolist()==expected, type(o)

# --- sizes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('epochs', [1,2,3,4,5,7,20])
@pytest.mark.parametrize('sizes', [(96,160), (32,33), (16,224), (100,100)])
def test_the_last_epoch_has_the_last_size(epochs, sizes):
    got = epoch_sizes(replace(base, epochs=epochs, start_size=sizes[0], size=sizes[1]))
    assert len(got)==epochs and got[-1]==sizes[1] and got==sorted(got)
    assert epochs==1 or got[0]==sizes[0]

def test_recorded_runs_grew_as_they_do_now():
    assert epoch_sizes(recipe('resnet50-20ep'))==[96]*11 + [112,128,144] + [160]*6
    assert epoch_sizes(recipe('imagenette-5ep-growing'))==[96]*3 + [128]*2

def test_a_short_run_is_recorded_at_the_size_it_had(drawn, monkeypatch):
    seen = []
    class Sizes(Callback):
        def before_batch(self): seen.append(self.x.shape[-1])
    monkeypatch.setattr(defaults, 'callbacks', [*defaults.callbacks, Sizes])
    rec = train(drawn, replace(base, start_size=16), out='out', precision='fp32')
    assert set(seen)=={32} and rec['size']==32

# --- nets that use a thing twice, or find their sizes themselves ------------------------------------------------
def a_module_twice(n):
    b = ConvLayer(8, 8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), b, b, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))

def one_weight_in_two_layers(n):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, n))
    net[3].weight = net[1].weight
    return net

def a_view_as_buffer(n):
    net = get_fcn(n, widths=(8,))
    net.register_buffer('some', torch.arange(8.))
    net.register_buffer('first', net.some[:4])
    net.register_buffer('turned', torch.zeros(2,3).T)
    return net

def lazy(n):
    return nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(n))

def space_to_depth(n):
    return nn.Sequential(nn.PixelUnshuffle(4), ConvLayer(48, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))

def attention(n):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out,self.attend,self.cut = nn.Linear(16,n),nn.MultiheadAttention(16, 2, batch_first=True),nn.Conv2d(3,16,8,8)
        def forward(self, x):
            x = self.cut(x).flatten(2).transpose(1,2)
            return self.out(self.attend(x, x, x, need_weights=False)[0].mean(1))
    return Net()

own_nets = [a_module_twice, one_weight_in_two_layers, a_view_as_buffer, lazy, space_to_depth, attention]

@pytest.mark.parametrize('ema', [0., .5])
@pytest.mark.parametrize('make', own_nets)
def test_what_is_trained_is_kept(odd, make, ema):
    "And comes back as it was"
    r = replace(base, ema=ema)
    rec = train(odd, r, make, out='out', precision='fp32')
    trained = load_trained(f"out/{rec['name']}.safetensors", make)
    files = get_image_files(odd/'val').sorted()
    got = trained.predict(files)
    assert np.isclose((got['class']==[f.parent.name for f in files]).mean(), rec['accuracy'])
    state = torch.load(f"out/{rec['name']}.pt", weights_only=True)['model']
    for k,o in trained.net.state_dict().items(): assert (o==state[f'average.{k}' if ema else k]).all(), k
    assert rec['params']==sum(p.numel() for p in recipe_net(r, 2, make).parameters()) and rec['macs']>0
    assert train(odd, r, make, out='out', precision='fp32', resume=True)==rec

@pytest.mark.parametrize('make', [a_module_twice, one_weight_in_two_layers])
def test_an_average_of_tied_weights(make):
    "Is moved once at each step, though its state dict names it twice"
    torch.manual_seed(0)
    net = Averaged(make(2), .5, every=1)
    free = {k:o.clone() for k,o in net.average.state_dict().items()}
    for i in range(3):
        for p in net.net.parameters(): p.data.add_(torch.randn_like(p))
        net.update()
        keep = min(.5, (2+i)/(11+i))
        for k,o in net.net.state_dict().items(): free[k] = free[k].lerp(o, 1-keep) if o.is_floating_point() else o.clone()
    for k,o in net.average.state_dict().items(): assert torch.allclose(o, free[k]), k

# --- the average ------------------------------------------------------------------------------------------------
def copies_as_state(n):
    net = relu(n)
    net._register_state_dict_hook(lambda m,state,*_: state.update({k:o.clone() for k,o in state.items()}))
    return net
class OnItsDevice(nn.Module):
    def __init__(self, n): super().__init__(); self.net = relu(n)
    def forward(self, x): return self.net(x.to(next(self.parameters()).device))
def old_weight_norm(n):
    net = relu(n)
    nn.utils.weight_norm(net[-1])
    return net
class Complex(nn.Module):
    def __init__(self, n): super().__init__(); self.net,self.turn = relu(n),nn.Parameter(torch.randn(n, dtype=torch.cfloat))
    def forward(self, x): return (self.net(x)*self.turn).real

def shaken(net):
    "As a step of an optimiser would leave it"
    for p in net.parameters(): p.data.add_(torch.randn_like(p), alpha=.1)

averaged_nets = [a_module_twice, one_weight_in_two_layers, copies_as_state, OnItsDevice, old_weight_norm, Complex, attention]
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', averaged_nets)
def test_the_average_of_any_net(make):
    "Moves as the rule says, speaks in eval mode, and is neither counted nor trained"
    torch.manual_seed(0)
    net,x = Averaged(make(2), .5, every=2),torch.randn(2,3,32,32)
    was = [p.detach().clone() for p in net.average.parameters()]
    net(x).sum()
    for _ in range(2): shaken(net.net); net.update()
    keep = (3/12)**2
    for a,b,p in zip(net.average.parameters(), was, net.net.parameters(), strict=True):
        torch.testing.assert_close(a, keep*b + (1-keep)*p.detach())
    with torch.no_grad(): torch.testing.assert_close(kept(net).eval()(x), net.eval()(x))
    assert [*map(id, net.parameters())]==[*map(id, net.net.parameters())]
    assert total_params(net)[0]==sum(p.numel() for p in make(2).parameters())
    assert not any(p.requires_grad for p in net.average.parameters())

@pytest.mark.parametrize('epochs, steps', [(1,1), (1,4), (3,1), (2,3), (1,7), (2,5)])
def test_the_average_ends_with_the_last_step(epochs, steps):
    "However few there were; what was due after five, and ten, is as it always was"
    xs = torch.randn(8*steps, 4)
    dl = DataLoader(list(zip(xs, torch.zeros(len(xs), dtype=torch.long))), bs=8)
    seen,states = [],[]
    class Look(Callback):
        order = 10
        def before_fit(self): states.append(self.model.net[0].weight.detach().clone())
        def after_step(self): states.append(self.model.net[0].weight.detach().clone())
        def before_validate(self): seen.append((int(self.model.steps), self.model.average[0].weight.clone()))
    learn = get_learner(DataLoaders(dl, dl), Averaged(nn.Sequential(nn.Linear(4,2)), .9), 'fp32', cbs=[EMA(), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .1)
    expected,last,total = states[0],0,epochs*steps
    for n in range(1, total+1):
        if n%5==0 or n==total or n%steps==0 and n<5:
            expected = states[n].lerp(expected, min(.9, (1+n)/(10+n))**(n-last))
            last = n
        if n%steps==0: torch.testing.assert_close(seen[n//steps-1][1], expected)
    assert len(seen)==epochs and seen[-1][0]==total

def test_an_averaged_resnet_has_its_groups():
    net = resnet18(3)
    assert [[*map(id, o)] for o in Averaged(net, .9).param_groups()]==[[*map(id, o)] for o in net.param_groups()]
    learn = get_learner(None, Averaged(relu(2), .9), 'fp32')
    learn.create_opt()
    assert len(learn.opt.param_lists)==1

# --- what is trained --------------------------------------------------------------------------------------------
def grown(change):
    net = resnet18(4)
    change(net)
    return net
def in_front_of_the_head(net): net.head = nn.Sequential(nn.Dropout(.1), net.head)
def a_weight_in_both(net): net.add_module('more', nn.Linear(4,4)); net.stage1[0].more = net.more
def a_weight_of_its_own(net): net.scale = nn.Parameter(torch.ones(1))
changes = dict(none=noop, layer=lambda n: n.append(nn.Linear(4,2)), nothing=lambda n: n.append(nn.Identity()), two=lambda n:
    n.extend([nn.ReLU(), nn.Linear(4,2)]), head=in_front_of_the_head, both=a_weight_in_both, own=a_weight_of_its_own)

@pytest.mark.parametrize('name', changes)
def test_a_resnet_s_groups_are_all_that_is_trained(name):
    "Whatever is appended: each parameter in one group, once; what follows the head is with it"
    net = grown(changes[name])
    body,head = net.param_groups()
    assert sorted(map(id, [*body, *head]))==sorted(map(id, net.parameters()))
    at = list(net._modules).index('head')
    assert {*map(id, head)}=={id(p) for m in list(net._modules.values())[at:] for p in m.parameters()}
    assert net.body(torch.zeros(2,3,64,64)).shape==(2,512,2,2)

# --- refused before a photo is read -----------------------------------------------------------------------------
class Stateful(nn.Linear):
    def get_extra_state(self): return dict(more=1)
    def set_extra_state(self, state): pass
def stateful(n): return nn.Sequential(nn.Flatten(), Stateful(3*32*32, n))
def too_few(n): return get_fcn(n-1)
def a_grid(n): return nn.Conv2d(3, n, 3)
def without_arguments(): return get_fcn(2)
def fails(n): raise ValueError('no luck')
def other_size(n): return nn.Sequential(nn.Flatten(), nn.Linear(10, n))
def grey(n): return get_fcn(n, c_in=1)
def a_name_at_random(n): return nn.Sequential(OrderedDict({f'a{random.random()}'.replace('.','_'):nn.Flatten(),
                                                          f'b{random.random()}'.replace('.','_'):nn.Linear(3072, n)}))
class Unused(nn.Module):
    def __init__(self, n): super().__init__(); self.net,self.spare = get_fcn(n),nn.LazyLinear(3)
    def forward(self, x): return self.net(x)

@pytest.mark.parametrize('make, words', [(stateful, ['stateful']), (too_few, ['too_few(2)','(2, 1)','(2, 2)']),
    (a_grid, ['(2, 2, 30, 30)']), (without_arguments, ['without_arguments','TypeError']), (fails, ['no luck']),
    (other_size, ['other_size']), (grey, ['grey']), (a_name_at_random, ['a_name_at_random']), (Unused, ['spare.weight','lazy']),
    (get_fcn(2), ['no name']), (3, ['model 3']), ('resnet19', ["no model 'resnet19'"])],
    ids=lambda o: getattr(o, '__name__', None) or '')
def test_a_net_that_will_not_do(odd, make, words, monkeypatch):
    monkeypatch.setattr(lesson, 'recipe_learner', lambda *_: pytest.fail('photos were read'))
    with pytest.raises(Exception) as e: train(odd, base, make, out='out')
    assert one_line(e, *words) and not Path('out').exists()

@pytest.mark.parametrize('kwargs, words', [(dict(r='tiny'), ["'tiny'",'recipe(name)']), (dict(r=asdict(base)), ['recipe(name)']),
    (dict(r=None), ['None']), (dict(epochs=0), ['0 epochs']), (dict(epochs=-3), ['-3 epochs']), (dict(epochs=1.5), ['epochs 1.5','whole']),
    (dict(epochs='3'), ["epochs '3'"]), (dict(size=31), ['size 31','32']), (dict(seed=-1), ['seed -1']), (dict(seed=2**32), ['seed 42949']),
    (dict(seed='a'), ["seed 'a'"]), (dict(out='file'), ['file','folder']), (dict(out='file/below'), ['file/below']),
    (dict(path='nowhere'), ['nowhere: no such folder']), (dict(path=Path('file')), ['file']), (dict(path=None), ['NoneType','folder']),
    (dict(precision='half'), ["precision 'half'",'fp32']), (dict(precision=16), ["precision '16'"])], ids=str)
def test_a_call_that_will_not_do(odd, kwargs, words, monkeypatch):
    monkeypatch.setattr(lesson, 'recipe_learner', lambda *_: pytest.fail('photos were read'))
    Path('file').write_text('x')
    with pytest.raises(Exception) as e: train(**dict(path=odd, r=base)|kwargs)
    assert one_line(e, *words) and not Path('runs').exists()

@pytest.mark.parametrize('change, words', [(dict(lr=0.), ['lr']), (dict(lr=math.nan), ['lr nan']), (dict(lr='1e-3'), ["lr '1e-3'",'number']),
    (dict(wd=-1.), ['wd']), (dict(smoothing=1.), ['smoothing','below 1']), (dict(mixup=-.1), ['mixup']), (dict(ema=1.), ['ema']),
    (dict(min_scale=0.), ['min_scale']), (dict(min_scale=1.5), ['min_scale']), (dict(bs=8.), ['bs 8.0','whole']),
    (dict(size='64'), ["size '64'"]), (dict(stem_pool=1), ['stem_pool','True or False']), (dict(bs=True), ['bs True']),
    (dict(start_size=0), ['start_size 0']), (dict(start_size=-16), ['start_size -16']), (dict(name='a/b'), ["'a/b'"]),
    (dict(name=''), ['name']), (dict(model=None), ['model None'])], ids=str)
def test_a_field_that_will_not_do(change, words):
    with pytest.raises(Exception) as e: replace(base, **change)
    assert one_line(e, *words)

def test_numpy_s_numbers_are_numbers():
    r = replace(base, epochs=np.int64(3), lr=np.float32(.5), ema=0)
    assert json.loads(json.dumps(asdict(r)))==asdict(r) and (r.epochs,r.lr)==(3,.5)

def test_a_seed_of_numpy_s(odd):
    "Is the same seed"
    def weights(seed): return [o.tolist() for o in lesson.recipe_learner(odd, base, seed, precision='fp32').model.parameters()]
    assert weights(np.int64(3))==weights(np.uint8(3))==weights(3)

@pytest.mark.parametrize('name', [None, 5, 'tin', dict(name='tiny')], ids=str)
def test_no_such_recipe(name):
    with pytest.raises(Exception) as e: recipe(name)
    assert one_line(e, 'no recipe')

def test_names_that_are_no_words():
    "Classes and folders may be called as one likes"
    path = photo_set(Path('my {0} photos'), ('{a}','b c','%s'), ('{a}','b c','%s'), n=3)
    rec = train(path, recipe('tiny'), epochs=1, precision='fp32')
    assert 'my {0} photos' in shlex.split(rec['command']) and load_trained(
        f"runs/train-my {{0}} photos/{rec['name']}.safetensors").classes==['%s','b c','{a}']

@pytest.mark.parametrize('item', [Path('.'), '.'])
def test_a_folder_is_no_photo(item):
    for o in (item, [item]):
        with pytest.raises(Exception) as e: Trained(recipe_net(base, 2), ['a','b'], base).predict(o)
        assert one_line(e, 'folder', 'get_image_files')

# --- the file and its net ---------------------------------------------------------------------------------------
def relu(n): return nn.Sequential(nn.Conv2d(3,8,3,2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
def silu(n): return nn.Sequential(nn.Conv2d(3,8,3,2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
def wide(n): return nn.Sequential(nn.Conv2d(3,16,3,2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16,n))

def test_weights_know_their_net(odd):
    "By what it does: another activation has the same weights"
    train(odd, replace(base, lr=.1), relu, out='out', precision='fp32')
    file = Path('out/relu-test-s42.safetensors')
    load_trained(file, relu)
    for other in (silu, wide):
        with pytest.raises(Exception) as e: load_trained(file, other)
        assert one_line(e, file, f'another net than {other.__name__}', '`model`')
    with pytest.raises(Exception) as e: load_trained(file)
    assert one_line(e, file, 'a net of your own, relu', '`model`') and 'resnet' not in str(e.value)

def test_weights_of_an_earlier_version():
    "Say less, and are loaded all the same"
    net = relu(2)
    save_weights(Path('a.safetensors'), net, recipe=asdict(replace(base, model='relu')), classes=['a','b'])
    assert (load_trained('a.safetensors', relu).net[0].weight==net[0].weight).all()

def test_a_finished_record_is_of_the_net_that_it_names(odd):
    "A net that was changed since, under the same name"
    def my_net(n): return relu(n)
    first = train(odd, base, my_net, out='out', precision='fp32')
    for other in (wide, silu):
        def my_net(n): return other(n)
        with pytest.raises(Exception) as e: train(odd, base, my_net, out='out', precision='fp32', resume=True)
        assert one_line(e, 'another run', 'net') and load_json('out/my_net-test-s42.json')==first

def test_weights_are_safe_before_anything_else_is_done(odd, monkeypatch):
    "A view that cannot be computed costs no training"
    def fails(*args, **kwargs): raise RuntimeError('no memory')
    with monkeypatch.context() as m:
        m.setattr(lesson, 'predict_view', fails)
        with pytest.raises(RuntimeError): train(odd, base, out='out', precision='fp32')
    weights = Path('out/fcn-test-s42.safetensors')
    net = load_trained(weights).net.state_dict()
    assert not load_json('out/fcn-test-s42.json')['complete']
    class None_(Callback):
        def before_batch(self): assert not self.training
    monkeypatch.setattr(defaults, 'callbacks', [*defaults.callbacks, None_])
    assert train(odd, base, out='out', precision='fp32', resume=True)['complete']
    assert all((o==net[k]).all() for k,o in load_trained(weights).net.state_dict().items())

@pytest.mark.parametrize('stop', [('before_batch',0,1), ('after_epoch',0), ('before_validate',1)], ids=str)
def test_chapter_14_s_transforms_after_a_stop(drawn, stop, monkeypatch):
    "fastai draws from them once to see what they return: that must not move the random states"
    class Pressed(CtrlC):
        def __init__(self): super().__init__(*stop)
    r = replace(base, min_scale=None, bs=16, epochs=2)
    def outcome(out, **kwargs):
        rec = train(drawn, r, out=out, precision='fp32', **kwargs)
        weights = load_trained(f"{out}/{rec['name']}.safetensors").net.state_dict().values()
        return [o['train_loss'] for o in rec['history']],rec['views'],[o.tolist() for o in weights]
    expected = outcome('whole')
    with monkeypatch.context() as m:
        m.setattr(defaults, 'callbacks', [*defaults.callbacks, Pressed])
        with pytest.raises(KeyboardInterrupt): outcome('out')
    assert outcome('out', resume=True)==expected

# --- few photos -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n, bs, steps', [(85,10,8), (16,8,2), (40,8,5), (600,64,9), (3,3,1)])
def test_a_recipe_is_fitted_to_a_small_folder(n, bs, steps, capsys):
    "Batches as `run_settings` has them, and a hundred steps"
    r = suited(recipe('imagenette-5ep'), n)
    assert r.bs==bs==batch_for(n, 64) and n//r.bs==steps and r.epochs*steps>=100>(r.epochs-1)*steps
    assert f'batches of {bs}' in capsys.readouterr().out
    assert suited(recipe('imagenette-5ep'), n, 5).epochs==recipe('imagenette-5ep').epochs   # those that were asked for

@pytest.mark.parametrize('name', recipes)
def test_a_large_set_has_the_recipe_s_own(name, capsys):
    assert suited(recipes[name], 9469)==recipes[name] and not capsys.readouterr().out

def test_who_is_fitted(drawn, monkeypatch):
    "A recipe of the course on one's own photos; neither the drawn set nor a recipe of one's own"
    def stop(path, r, *args): raise Stopped(r)
    class Stopped(Exception): pass
    monkeypatch.setattr(lesson, 'recipe_learner', stop)
    def settings(*args, **kwargs):
        with pytest.raises(Stopped) as e: train(*args, **kwargs)
        return e.value.args[0].bs,e.value.args[0].epochs
    mine = photo_set(Path('mine'), n=20)
    assert settings(mine, recipe('tiny'))==(8,20) and settings(mine, recipe('tiny'), epochs=3)==(8,3)
    assert settings(mine, recipe('tiny'), 'fcn')==(8,20)
    assert settings(mine, replace(recipe('tiny'), name='own'))==(16,2) and settings(drawn, recipe('tiny'))==(16,2)

@pytest.mark.parametrize('n, bs', [(85,10), (4,4), (100,12), (1100,128)])
def test_chapter_14_s_batch_is_fitted_too(n, bs):
    for i in range(n):
        file = Path('set/train')/'ab'[i%2]/f'{i}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert run_settings(Path('set'))==dict(presize=160, resize=128, bs=bs)

# --- nets that a file would not keep ----------------------------------------------------------------------------
class Feature(nn.Module):
    "Means of channels, and what a subclass makes of them"
    def __init__(self, n): super().__init__(); self.m,self.fc,self.t = nn.Sequential(*relu(8)[:4]),nn.Linear(8,n),1.
    def forward(self, x): return self.fc(self.of(self.m(x)))
class DrawnConstant(Feature):
    def __init__(self, n): super().__init__(n); self.mix = torch.randn(8,8)
    def of(self, x): return x@self.mix
class PassingBuffer(Feature):
    def __init__(self, n): super().__init__(n); self.register_buffer('mix', torch.randn(8,8), persistent=False)
    def of(self, x): return x@self.mix
class NumPyConstant(Feature):
    def __init__(self, n): super().__init__(n); self.mix = np.random.rand()
    def of(self, x): return x*self.mix
class ChangingAttribute(Feature):
    def of(self, x):
        if self.training: self.t *= .8
        return x/self.t
class ChangingBuffer(Feature):
    def __init__(self, n): super().__init__(n); self.register_buffer('mean', torch.zeros(8), persistent=False)
    def of(self, x):
        if self.training: self.mean.copy_(x.detach().mean(0))
        return x-self.mean
class HiddenLayer(Feature):
    def __init__(self, n): super().__init__(n); self.more = [nn.Linear(8,8)]
    def of(self, x): return self.more[0](x)
class Dropping(Feature):
    def of(self, x): return F.dropout(x)
class Noise(Feature):
    def of(self, x): return x+torch.randn_like(x)
class Counting(Feature):
    def of(self, x): self.t += 1; return x*self.t
class Auxiliary(Feature):
    def forward(self, x):
        said = super().forward(x)
        return (said,said) if self.training else said
    def of(self, x): return x
class Aside(Auxiliary):
    def forward(self, x): return dict(out=Feature.forward(self, x)) if self.training else Feature.forward(self, x)
class Wider(Auxiliary):
    def forward(self, x): return Feature.forward(self, x).repeat(1,1+self.training)
class BatchStatistics(Feature):
    def __init__(self, n): super().__init__(n); self.norm = nn.BatchNorm1d(8, track_running_stats=False)
    def of(self, x): return self.norm(x)
one_net,one_part = relu(2),nn.Conv2d(3,8,3,2)
def always_one(n): return one_net
def shares_a_part(n): return nn.Sequential(one_part, *relu(n)[1:])

not_kept = {'state_dict':[DrawnConstant, PassingBuffer, NumPyConstant, ChangingAttribute, ChangingBuffer, HiddenLayer, Counting],
            'asked again':[Dropping, Noise], 'in training':[Auxiliary, Aside, Wider], 'anew':[always_one, shares_a_part],
            'more than 1 value':[BatchStatistics]}
@pytest.mark.parametrize('why, make', [(k,o) for k,v in not_kept.items() for o in v])
def test_a_net_that_no_file_would_keep(odd, why, make, monkeypatch):
    "Is refused before a photo is read; what is drawn for that moves no random state"
    monkeypatch.setattr(lesson, 'recipe_learner', lambda *_: pytest.fail('photos were read'))
    with pytest.raises(Exception) as e: train(odd, base, make, out='out')
    assert one_line(e, make.__name__, why) and not Path('out').exists()

class FixedConstant(Feature):
    def __init__(self, n): super().__init__(n); self.mix = torch.eye(8)
    def of(self, x): return x@self.mix
class KeptBuffer(Feature):
    def __init__(self, n): super().__init__(n); self.register_buffer('mix', torch.randn(8,8))
    def of(self, x): return x@self.mix
class DroppingInTraining(Feature):
    def of(self, x): return F.dropout(x, training=self.training)
class NoWeights(nn.Module):
    def __init__(self, n): super().__init__(); self.n = n
    def forward(self, x): return x.flatten(1)[:,:self.n]
def spectral(n): net = relu(n); nn.utils.spectral_norm(net[-1]); return net

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [*own_nets, *averaged_nets[2:], FixedConstant, KeptBuffer, DroppingInTraining,
                                  NoWeights, spectral])
def test_a_net_that_a_file_keeps_is_not_refused(make):
    rng = torch.get_rng_state()
    check_net(make.__name__, 2, [32], lambda: recipe_net(replace(base, model='mine'), 2, make))
    assert torch.equal(torch.get_rng_state(), rng)

# --- what a recipe changes in a net -----------------------------------------------------------------------------
class Gated(ResBlock):
    "With a forward of its own"
    def __init__(self, *args): super().__init__(*args); self.gate = nn.Linear(args[1], args[1])
    def forward(self, x):
        y = self.branch(x)
        return F.relu(y*self.gate(y.mean((2,3))).sigmoid()[...,None,None] + self.shortcut(x))
class Leaky(nn.ReLU):
    def forward(self, x): return F.leaky_relu(x, .2)
class Renamed(ResBlock): pass

def with_blocks(block):
    return lambda n: nn.Sequential(block(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
def one_relu_twice(n):
    a = nn.ReLU()
    return nn.Sequential(nn.Conv2d(3,8,3,2), a, nn.Conv2d(8,8,3,2), a, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
def one_block_twice(n):
    b = ResBlock(8, 8)
    return nn.Sequential(nn.Conv2d(3,8,3,2), b, b, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
def own_relu(n): return nn.Sequential(nn.Conv2d(3,8,3,2), Leaky(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))

def kinds(net): return [type(m).__name__ for m in net.modules()]

@pytest.mark.parametrize('make', [one_relu_twice, one_block_twice, own_relu, *map(with_blocks, (Gated, Renamed, ResBlock))])
def test_another_activation_changes_nothing_else(make):
    "With ReLU for ReLU the net is the same; no layer of a plain ReLU is left, none is made two"
    torch.manual_seed(0)
    net,x = make(2).eval(),torch.randn(2,3,32,32)
    def count(net): return len(list(net.parameters())),len({*net.modules()}),len(list(net.named_modules(remove_duplicate=False)))
    with torch.no_grad(): before,many = net(x),count(net)
    with_activation(net, nn.ReLU).eval()
    with torch.no_grad(): assert torch.equal(net(x), before)
    assert count(net)[0]==many[0]
    net = with_activation(make(2), nn.Mish)
    assert not [m for m in net.modules() if type(m) is nn.ReLU] and 'ResBlock' not in kinds(net)
    assert ('Gated' in kinds(net))==('Gated' in kinds(make(2))) and ('Leaky' in kinds(net))==(make is own_relu)
    if make is one_relu_twice: assert net[1] is net[3] and isinstance(net[1], nn.Mish)
    if make is one_block_twice: assert net[1] is net[2]

def a_pool_in_the_middle(n):
    net = resnet18(n)
    net.stage2.append(nn.MaxPool2d(2))
    return net
def no_stem(n): return nn.Sequential(nn.Conv2d(3,8,3,2), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))

def test_without_the_stem_s_pool():
    "The others stay"
    net = recipe_net(replace(base, model='mine', stem_pool=False), 2, a_pool_in_the_middle)
    assert isinstance(net.stem[3], nn.Identity) and isinstance(net.stage2[-1], nn.MaxPool2d)

@pytest.mark.parametrize('make', [no_stem, own_relu], ids=lambda o: o.__name__)
@pytest.mark.parametrize('change', [dict(stem_pool=False), dict(down='avg'), dict(down='blur'), dict(shortcut='max_blur'), dict(act='Mish')], ids=str)
def test_an_option_that_finds_nothing(odd, make, change, monkeypatch):
    "Says so, and how to go without"
    def reached(*_): raise InterruptedError
    monkeypatch.setattr(lesson, 'recipe_learner', reached)
    (k,v), = change.items()
    with pytest.raises(Exception) as e: train(odd, replace(base, **change), make, out='out')
    if change==dict(act='Mish') and make is no_stem: assert isinstance(e.value, InterruptedError)
    else: assert one_line(e, make.__name__, f'{k}={v!r}', f'replace(recipe, {k}=') and not Path('out').exists()

# --- sizes in proportion ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('start, size, new, expected', [(100,100,40,40), (150,160,45,45), (16,128,32,16), (96,160,320,192), (None,128,64,None),
    (96,100,50,48), (16,128,np.int64(64),16), (128,128,200,200), (120,128,33,32), (32,2000,32,16)])
def test_a_start_in_proportion(start, size, new, expected):
    "From 16 to the size; one that does not grow, does not"
    got = resized(replace(base, size=size, start_size=start), new)
    assert got.start_size==expected and got.size==new

@pytest.mark.parametrize('size, words', [('64', ["size '64'"]), (0, ['size 0']), (-1, ['size -1']), (31, ['size 31']), (None, ['size None']),
    (64.5, ['size 64.5']), (True, ['size True'])], ids=str)
def test_no_size(size, words):
    for start in (None, 16, 128):
        with pytest.raises(Exception) as e: resized(replace(base, size=128, start_size=start), size)
        assert one_line(e, *words) and 'start' not in str(e.value)

# --- a record as it is ------------------------------------------------------------------------------------------
def test_a_record_s_settings_are_not_fitted(monkeypatch):
    "Though they are a recipe of the course, and the photos are few"
    from resnet_course.again import recipe_run
    class Stopped(Exception): pass
    def stop(path, r, *args): raise Stopped(r)
    monkeypatch.setattr(lesson, 'recipe_learner', stop)
    rec = dict(settings=asdict(recipe('tiny')), model='fcn', seed=1)
    with pytest.raises(Stopped) as e: recipe_run(rec, Path('a.json'), photo_set(Path('mine'), n=20), Path('out'), False, False, 'fp32')('fcn')
    assert e.value.args[0]==replace(recipe('tiny'), model='fcn')

@pytest.mark.parametrize('model, words', [('resnet18', ['another net','resnet18']), ('resnet19', ["no model 'resnet19'"]), (relu(2), ['Sequential','function']),
    (3, ['int','function']), (fails, ['fails(2)','no luck']), (without_arguments, ['TypeError']), ([], ['list','function'])],
    ids=lambda o: getattr(o, '__name__', None) or str(o)[:12])
def test_what_makes_no_net_of_a_file(model, words):
    save_weights(Path('a.safetensors'), relu(2), recipe=asdict(replace(base, model='relu')), classes=['a','b'])
    with pytest.raises(Exception) as e: load_trained('a.safetensors', model)
    assert one_line(e, *words)

def test_a_file_and_a_name():
    "As `train` takes it"
    save_weights(Path('a.safetensors'), get_fcn(2), recipe=asdict(base), classes=['a','b'])
    assert load_trained('a.safetensors', 'fcn').classes==['a','b']
