"What a run is: what must be equal to resume it, what its checkpoint holds, and what is refused before it begins"
import shlex, shutil, subprocess
from contextlib import nullcontext
from dataclasses import replace
import pytest, torch
from fastai.vision.all import *
from itertools import product   # after fastai, which has another
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from resnet_course.kit import checkpoint, runs
from resnet_course.kit.files import CourseError, load_json, save_json
from resnet_course.kit.identity import check_same, net_macs, run_setup, told
from resnet_course.kit.results import plot_history, results
from resnet_course.kit.runs import command_line, measured_fit
from resnet_course.data import get_data
from resnet_course.fcn import get_fcn
from resnet_course.loading import cached_chapter_data, cached_data, random_crops
from resnet_course.training import get_learner
from resnet_course.resnet import resnet18, ResNet
from resnet_course.preact import preact_resnet
from resnet_course.recipe import recipe, recipe_learner
from resnet_course.degradation import degradation_experiment
from conftest import CtrlC, one_line, same, tiny_learner
from test_runs import ckpt, file, outcome, run, whole

top = Path(__file__).parent.parent

# --- which run it is --------------------------------------------------------------------------------------------
def fit_it(path, place='out/a.json', resume=False, cbs=(), epochs=2, **changes):
    "A run of `tiny_learner`'s kind, in which everything that decides what is learned can be changed"
    c = dict(width=8, act=nn.ReLU, bs=16, resize=32, presize=32, min_scale=None, opt_func=Adam, loss_func=CrossEntropyLossFlat(), wd=.01, lr=1e-2,
             fit=Learner.fit_one_cycle, precision='fp32', wd_bn_bias=False)|changes
    set_seed(42)
    net = nn.Sequential(nn.Conv2d(3, c['width'], 3, 2), nn.BatchNorm2d(c['width']), c['act'](), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(c['width'], 10))
    dls = get_data(path, c['presize'], c['resize'], c['bs'])
    if c['min_scale']: dls = cached_data(path, bs=16, resize=32, crops=partial(random_crops, min_scale=c['min_scale']))
    learn = get_learner(dls, net, c['precision'], opt_func=c['opt_func'], wd=c['wd'],
                        wd_bn_bias=c['wd_bn_bias'], loss_func=c['loss_func'], cbs=cbs)
    with learn.no_bar(), learn.no_logging():
        return measured_fit(learn, epochs, c['lr'], Path(place), resume, c['fit'], overwrite=not resume, model='mine',
                            recipe='own', size=32, seed=42)

others = dict(width=dict(width=16), activation=dict(act=nn.SiLU), batch=dict(bs=8), pixels=dict(resize=24), presize=dict(presize=40), crops=dict(min_scale=.9),
    optimiser=dict(opt_func=SGD), momentum=dict(opt_func=partial(Adam, mom=.5)), own=dict(opt_func=lambda p,lr: SGD(p, lr)),
    loss=dict(loss_func=LabelSmoothingCrossEntropyFlat()), decay=dict(wd=.1), norms=dict(wd_bn_bias=True),
    smoothing=dict(loss_func=LabelSmoothingCrossEntropyFlat(eps=.2)), weights=dict(loss_func=
    CrossEntropyLossFlat(weight=torch.linspace(1,2,10))), rate=dict(lr=2e-2), schedule=dict(fit=Learner.fit),
    moms=dict(fit=partial(Learner.fit_one_cycle, moms=(.9,.9,.9))), mixup=dict(cbs=[MixUp(.4)]),
    gather=dict(cbs=[GradientAccumulation(32)]), precision=dict(precision='bf16'), epochs=dict(epochs=3))

@pytest.fixture(scope='module')
def begun(drawn, tmp_path_factory):
    "A finished run and a stopped one"
    folder = tmp_path_factory.mktemp('begun')
    torch.set_num_threads(1)
    fit_it(drawn, folder/'done.json')
    with pytest.raises(KeyboardInterrupt): fit_it(drawn, folder/'half.json', cbs=[CtrlC('before_batch',1,5)])
    return folder

@pytest.mark.parametrize('change', others.values(), ids=others)
@pytest.mark.parametrize('state', ['done','half'])
def test_resume_knows_another_run(state, change, begun, drawn):
    "By its record, if it was finished, and by its checkpoint alone; both stay as they are"
    shutil.copytree(begun, 'out')
    if state=='half': Path('out/half.json').unlink(missing_ok=True)
    before = {f.name:f.read_bytes() for f in Path('out').ls()}
    with pytest.raises(Exception) as e: fit_it(drawn, f'out/{state}.json', resume=True, **change)
    assert one_line(e, f'out/{state}', 'another run', 'different', '--resume')
    assert before=={f.name:f.read_bytes() for f in Path('out').ls()}

@pytest.mark.parametrize('changes', [(dict(min_scale=.5), dict(min_scale=.9)), (dict(flip=0.), dict(flip=1.)),
    (dict(tfms=[Brightness(.5, p=1)]), dict(tfms=[Brightness(.1, p=1)]))], ids=['scale','flip','brightness'])
def test_what_is_done_to_the_photos_counts(drawn, changes):
    "Whatever does it"
    def setup(min_scale=.35, **kwargs):
        dls = cached_data(drawn, resize=32, bs=16, crops=partial(random_crops, min_scale=min_scale), **kwargs)
        learn = get_learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 'fp32')
        return dict(setup=run_setup(learn, Learner.fit, runs.first_batch(dls)[0]))
    usual,*others = setup(),*[setup(**o) for o in changes]
    check_same('f', usual, setup())
    for o in others:
        with pytest.raises(Exception) as e: check_same('f', usual, o)
        assert one_line(e, 'different first batch')

def test_resume_knows_the_same_run(begun, drawn):
    "Made anew, with callbacks that only look on; also from a record of a version that said less"
    shutil.copytree(begun, 'out')
    rec = load_json('out/done.json')
    assert fit_it(drawn, 'out/done.json', resume=True, cbs=[CSVLogger()])==rec
    save_json('out/done.json', {k:v for k,v in rec.items() if k!='setup'})
    assert fit_it(drawn, 'out/done.json', resume=True)=={k:v for k,v in rec.items() if k!='setup'}
    with pytest.raises(Exception) as e: fit_it(drawn, 'out/done.json', resume=True, width=16)
    assert one_line(e, 'params', 'macs')
    assert fit_it(drawn, 'out/half.json', resume=True)['complete']

def test_recorded_runs_can_be_resumed_only_as_themselves():
    "Their records say less, and are read all the same"
    known = 'model recipe size seed settings lr data params macs epochs precision'.split()
    recorded = list(results(top/'results'/'ladder').record)
    assert len(recorded)>10
    for a,b in product(recorded, repeat=2):
        with nullcontext() if a is b else pytest.raises(CourseError): check_same('f', a, {k:b[k] for k in known})

@pytest.mark.parametrize('names', [('a.b','a.c'), ('resnet.v1-s1.json','resnet.v2-s1.json'), ('x','x.y')])
def test_each_record_has_a_checkpoint_of_its_own(drawn, names):
    for i,name in enumerate(names): fit_it(drawn, f'out/{name}', epochs=1, width=8*(i+1))
    assert len(Path('out').ls())==4
    for i,name in enumerate(names):
        rec = load_json(f'out/{name}')
        Path(f'out/{name}').unlink()
        again = fit_it(drawn, f'out/{name}', epochs=1, width=8*(i+1), resume=True)   # from the checkpoint alone
        assert again['history']==rec['history'] and again['name']==name.removesuffix('.json')

class Cancel(Callback):
    "Ends the fit in one of its epochs"
    order = 5
    def __init__(self, at): self.at = at
    def before_batch(self):
        if self.epoch==self.at: raise CancelFitException

@pytest.mark.parametrize('at', [0,1])
@pytest.mark.parametrize('resume', [False,True])
def test_a_cancelled_run_is_not_complete(drawn, at, resume, capsys):
    "Not even where an earlier one lies; what is done with a trained net is not done with this one"
    old = fit_it(drawn)
    Path('out/a.pt').unlink()
    kwargs = dict(resume=True, makes=[Path('out/a.weights')]) if resume else dict(overwrite=True)
    learn = tiny_learner(drawn, cbs=Cancel(at))
    with learn.no_bar(), learn.no_logging():
        if resume:   # the same run as the first one below, whose weights somebody has deleted
            save_json(file, measured_fit(tiny_learner(drawn), 2, 1e-2, file, model='a', recipe='b', size=32, seed=42))
            ckpt.unlink()
        rec = measured_fit(learn, 2, 1e-2, file if resume else Path('out/a.json'), model='a', recipe='b', size=32, seed=42,
                           after=lambda *_: pytest.fail('it is not trained'), **kwargs)
    assert old['complete'] and not rec['complete'] and len(rec['history'])==at
    assert load_json(file if resume else Path('out/a.json'))==rec and 'not complete' in capsys.readouterr().out

# --- what else a run holds --------------------------------------------------------------------------------------
class EverySecond(Callback):
    "Takes a step after every second batch, of the sum of their gradients; fastai's own way counts photos"
    order,run_valid = MixedPrecision.order-4,False
    def before_step(self):
        if self.train_iter%2==0: raise CancelBatchException

@pytest.mark.parametrize('cb', [partial(GradientAccumulation, 32), partial(GradientAccumulation, 48), EverySecond])
@pytest.mark.parametrize('stop', [CtrlC('before_batch',0,0), CtrlC('before_batch',0,2), CtrlC('after_epoch',0),
                                  CtrlC('before_batch',1,6)], ids=['first','middle','between','later'])
def test_accumulated_gradients_are_kept(drawn, cb, stop):
    expected = outcome(*run(drawn, cb(), epochs=2))
    with pytest.raises(KeyboardInterrupt): run(drawn, cb(), stop, epochs=2)
    assert outcome(*run(drawn, cb(), resume=True, epochs=2))==expected

class Unfreeze(Callback):
    "In the second epoch's training, and in each later one as it is"
    def before_train(self):
        if self.epoch==1: self.model.requires_grad_(True)

class Halve(Callback):
    "The learning rate and the weights, whenever an epoch's training begins"
    def before_train(self):
        for h in self.opt.hypers: h['lr'] /= 2
        with torch.no_grad():
            for p in self.model.parameters(): p *= .9

@pytest.mark.parametrize('cb, frozen', [(Unfreeze,True), (Halve,False)], ids=['unfreeze','halve'])
@pytest.mark.parametrize('stop', [CtrlC('before_batch',1,6), CtrlC('after_epoch',1), CtrlC('before_batch',2,9)], ids=['middle','between','later'])
def test_what_a_callback_does_when_training_begins_is_done_once(drawn, cb, frozen, stop):
    def fit(*cbs, resume=False):
        learn = tiny_learner(drawn, cbs=cbs)
        learn.create_opt()   # while it can see all weights
        if frozen: learn.model[0].requires_grad_(False)
        return outcome(learn, measured_fit(learn, 3, 1e-2, file, resume, Learner.fit, overwrite=not resume, model='fcn', recipe='small',
                                           size=32, seed=42))
    expected = fit(cb())
    with pytest.raises(KeyboardInterrupt): fit(cb(), stop)
    assert fit(cb(), resume=True)==expected

def test_a_checkpoint_of_before_knows_nothing_of_frozen_weights(drawn):
    expected = outcome(*run(drawn))
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    state = torch.load(ckpt, weights_only=True)
    del state['trained']
    torch.save(state, ckpt)
    assert outcome(*run(drawn, resume=True))==expected

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('at', [0, 2, 3, 5, 11])   # of 12 batches, 4 in an epoch
def test_a_loss_that_is_no_number(drawn, bad, at):
    "Ends the run at once, and the record is JSON (RFC 8259), which has no NaN; no weights are kept"
    seen,kept = [],[]
    class Spoil(Callback):
        def after_loss(self):
            if not self.training: return
            seen.append(1)
            if self.train_iter==at: self.learn.loss_grad = self.learn.loss = self.loss*bad
    def none(c): raise ValueError(c)
    with pytest.raises(Exception) as e: run(drawn, Spoil(), after=lambda *args: kept.append(1))
    assert one_line(e, f'epoch {at//4}', f'batch {at%4}', 'learning rate', 'no number') and len(seen)<=at+2 and not kept
    rec = json.loads(file.read_text(), parse_constant=none)
    assert rec==load_json(file) and not rec['complete'] and len(rec['history'])==at//4
    assert (rec['diverged']['epoch'],rec['diverged']['batch'])==(at//4,at%4) and 0<rec['diverged']['lr']<=1e-2
    assert not results(file.parent).shape[0]

def test_a_validation_that_is_no_number(drawn):
    class Spoil(Callback):
        def after_loss(self):
            if not self.training: self.learn.loss = self.loss*math.nan
    with pytest.raises(Exception) as e: run(drawn, Spoil())
    rec = load_json(file)
    assert one_line(e, 'epoch 0', 'no number') and rec['diverged']=={'epoch':0} and not rec['complete']
    plot_history([rec])

def test_a_usual_run_says_nothing_of_it(whole): assert 'diverged' not in whole['rec']

@pytest.mark.parametrize('stem, c', [(nn.PixelUnshuffle(4),48), (nn.Upsample(scale_factor=2),3), (nn.Identity(),3)])
def test_channels_are_those_of_the_photos(drawn, stem, c):
    "Whatever the first convolution has, and whichever was registered first"
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(8, 10, 1)
            self.first = nn.Conv2d(c, 8, 1)
            self.stem = stem
        def forward(self, x): return self.last(self.first(self.stem(x))).mean((2,3))
    side = stem(torch.zeros(1,3,32,32)).shape[-1]
    learn = get_learner(get_data(drawn, 32, 32, 16), Backwards(), 'fp32')
    rec = measured_fit(learn, 1, 1e-3, file, model='a', recipe='b', size=32, seed=42)
    assert rec['macs']==side**2*(c*8+8*10)

def test_looking_at_a_net_leaves_it_as_it_is(drawn):
    "Counting and describing change neither modes nor random states; so the recorded runs come out the same"
    learn = tiny_learner(drawn)
    learn.model[0].eval()
    modes,states = [m.training for m in learn.model.modules()],checkpoint._random_states(learn.dls)
    xb,_ = runs.first_batch(learn.dls)
    assert (runs.first_batch(learn.dls)[0]==xb).all()
    run_setup(learn, Learner.fit, xb); net_macs(learn.model, xb, 32)
    assert modes==[m.training for m in learn.model.modules()]
    assert same(states, checkpoint._random_states(learn.dls))

def test_lazy_layers(drawn):
    "They get their sizes before anything counts or copies them"
    set_seed(42)
    lazy = nn.Sequential(nn.LazyConv2d(8,3,2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    learn = get_learner(get_data(drawn, 32, 32, 16), lazy, 'fp32')
    assert all(m.training for m in lazy.modules()) and not lazy[1].num_batches_tracked
    rec = measured_fit(learn, 1, 1e-3, file, model='a', recipe='b', size=32, seed=42)
    assert rec['params']==8*28+16+10*(8*15*15+1)
    class Unused(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.LazyLinear(10),nn.LazyLinear(3)
        def forward(self, x): return self.a(x.flatten(1))
    with pytest.raises(Exception) as e: get_learner(get_data(drawn, 32, 32, 16), Unused(), 'fp32')
    assert one_line(e, 'b.weight', 'lazy')

@pytest.mark.parametrize('bs, n', [(64,3), (16,12)])
def test_few_steps_are_said(drawn, bs, n, capsys):
    fit_it(drawn, bs=bs, epochs=3)
    assert f'only {n} steps' in capsys.readouterr().out

def test_enough_steps_need_no_word(drawn, capsys):
    fit_it(drawn, bs=4, epochs=7)   # 112
    assert 'only' not in capsys.readouterr().out

@pytest.mark.parametrize('kwargs, words', [(dict(seed=-1), ['seed -1','0 to']), (dict(seed=2**32), [f'seed {2**32}']),
    (dict(seed=.5), ['seed 0.5']), (dict(epochs=0), ['0 epochs']), (dict(epochs=1.5), ['1.5 epochs']),
    (dict(model='plan20'), ["no model 'plan20'",'plain20']), (dict(out=Path('file')), ['file','`out`']),
    (dict(out=Path('file/below')), ['file','`out`']), (dict(precision='half'), ["'half'",'fp32'])], ids=str)
def test_an_experiment_is_refused_before_its_photos_are_read(kwargs, words):
    Path('file').write_text('x')
    def none(path): pytest.fail('photos were read')
    exp = replace(degradation_experiment, loaders=none, data='.', epochs=kwargs.get('epochs', 1),
                  learner=dict(precision=kwargs.get('precision')))
    with pytest.raises(Exception) as e: exp.run(kwargs.get('model','plain20'), kwargs.get('seed',42), kwargs.get('out'))
    assert one_line(e, *words)

def test_a_command_can_be_typed():
    "Names of folders have blanks, braces and quotes"
    for name in ('my photos', "it's", 'a{0}b', '$HOME'):
        assert shlex.split(command_line('train', data=name))==['resnet_course','train','--data',name]

# --- groups of parameters ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('make', [resnet18, partial(preact_resnet, 18)])
def test_a_frozen_epoch_trains_the_head_alone(drawn, make):
    "In `fine_tune`; before, its one group of parameters was never frozen"
    class After(Callback):
        def after_epoch(self): kept.append({k:p.detach().clone() for k,p in self.model.named_parameters()})
    kept,dls = [],get_data(drawn, 32, 32, 16)
    learn = get_learner(dls, make(10), 'fp32')
    before = {k:p.detach().clone() for k,p in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, cbs=After())
    def moved(a, b): return {k.partition('.')[0] for k in a if (a[k]!=b[k]).any() and a[k].ndim>1}
    assert moved(before, kept[0])=={'head'} and moved(*kept)=={*learn.model._modules}

@pytest.mark.parametrize('opt', [Adam, SGD, ranger])
def test_groups_change_nothing_else(drawn, opt):
    "Trained without freezing, weights and rates are the same to the bit as with one group"
    def fit(**kwargs):
        set_seed(42)
        learn = get_learner(get_data(drawn, 32, 32, 32), ResNet(10, [1,1,1,1]), 'fp32', opt_func=opt, **kwargs)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
        return len(learn.opt.param_lists), learn.model.state_dict(), list(map(float, learn.recorder.lrs))
    (two,a,lrs),(one,b,lrs_one) = fit(),fit(splitter=trainable_params)
    assert (two,one)==(2,1) and lrs==lrs_one and all((a[k]==b[k]).all() for k in a)

def test_fastai_s_own_learner_takes_the_course_s_net(drawn):
    "Whose names stand in the place of torchvision's after the readme's imports"
    dls = get_data(drawn, 32, 32, 16)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    with pytest.raises(Exception) as e: vision_learner(dls, resnet18)
    assert one_line(e, 'pretrained=False', 'from_timm')

# --- what a run is, beside its layers and names -----------------------------------------------------------------
def closed(eps):
    def loss(pred, y): return F.cross_entropy(pred, y, label_smoothing=eps)
    return loss
def defaulted(eps):
    def loss(pred, y, eps=eps): return F.cross_entropy(pred, y, label_smoothing=eps)
    return loss
def written(text):
    space = dict(F=F, np=np, tensor=tensor, torch=torch, __name__='__main__')
    exec(text, space)
    return space['loss']
class Private(nn.Module):
    def __init__(self, eps): super().__init__(); self._eps = eps
    def forward(self, pred, y): return F.cross_entropy(pred, y, label_smoothing=self._eps)
class Method:
    def __init__(self, eps): self._eps = eps
    def loss(self, pred, y): return F.cross_entropy(pred, y, label_smoothing=self._eps)
class Slope(nn.Module):
    def __init__(self, slope): super().__init__(); self.body,self.slope = nn.Conv2d(3, 10, 3),slope
    def forward(self, x): return F.leaky_relu(self.body(x), self.slope).mean((2,3))
class Times(Callback):
    def __init__(self, n): self.n = n
    def before_batch(self): self.learn.xb = (self.xb[0]*self.n,)
class InPlace(Callback):
    def before_batch(self): self.xb[0].mul_(0)
class Black(Callback):
    def before_batch(self): self.xb[0][:] = 0
class FrozenNorms(Callback):
    def before_train(self):
        for m in self.model.modules(): m.eval()
class Strong(Callback):
    def before_train(self): self.model[-1].scale = 2.
class Counts(Callback):
    "Only looks on"
    def before_fit(self): self.n,self.labels = 0,{}
    def after_batch(self):
        self.n += 1 if self.n else self.n+1
        self.labels[self.n] = self.y[0]

def linear(seed=1):
    set_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))

def alike_learner(path, loss=None, net=None, cbs=(), get_y=parent_label, tfms=()):
    set_seed(5)
    block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=get_y, item_tfms=Resize(32),
                      splitter=GrandparentSplitter(valid_name='val'), batch_tfms=[*tfms])
    dls = block.dataloaders(path, path=path, bs=16, num_workers=0)
    return get_learner(dls, (net or linear)(), 'fp32', loss_func=loss() if loss else CrossEntropyLossFlat(), cbs=[o() for o in cbs])

def next_class(f, n): return str((int(re.sub(r'\D', '', str(hash_of(f)))[:6])+n)%10)
def hash_of(f): return sum(map(ord, parent_label(f)))

kinds = dict(closure=[dict(loss=partial(closed, o)) for o in (0.,.9)],
    default=[dict(loss=partial(defaulted, o)) for o in (0.,.9)],
    private=[dict(loss=partial(Private, o)) for o in (0.,.9)],
    method=[dict(loss=lambda o=o: Method(o).loss) for o in (0.,.9)],
    edited=[dict(loss=partial(written, f'def loss(p, y): return F.cross_entropy(p, y{o})')) for o in ('',', label_smoothing=.9')],
    outside=[dict(loss=partial(written, f'w = {o}\ndef loss(p, y): return F.cross_entropy(p, y, weight=tensor(w))')) for o in ([1.]*10, [9.]+[1.]*9)],
    array=[dict(loss=partial(written, f'w = dict(w=np.array({o}))\ndef loss(p, y): return F.cross_entropy(p, y, weight=tensor(w["w"]).float())'))
           for o in ([1.]*10, [9.]+[1.]*9)],
    module=[dict(loss=partial(written, f'crit = torch.nn.CrossEntropyLoss(label_smoothing={o})\ndef loss(p, y): return crit(p, y)')) for o in (0.,.9)],
    filled_in=[dict(loss=partial(written, 'from functools import partial\n'
                    f'smooth = dict(f=partial(F.cross_entropy, label_smoothing={o}))\ndef loss(p, y): return smooth["f"](p, y)')) for o in (0.,.9)],
    of_a_class=[dict(loss=partial(written, f'class Smooth:\n    eps = {o}\n    def __call__(self, p, y): return F.cross_entropy(p, y, '
                     'label_smoothing=self.eps)\nloss = Smooth()')) for o in (0.,.9)],
    forward=[dict(net=lambda o=o: (set_seed(1), Slope(o))[1]) for o in (.01,.9)],
    start=[dict(net=partial(linear, o)) for o in (1,2)],
    callback=[{}, dict(cbs=[partial(Times, 0)])],
    callback_value=[dict(cbs=[partial(Times, o)]) for o in (0,1)],
    callback_in_place=[{}, dict(cbs=[InPlace])],
    callback_assigns=[{}, dict(cbs=[Black])],
    callback_freezes=[{}, dict(cbs=[FrozenNorms])],
    callback_sets=[{}, dict(cbs=[Strong])],
    param_schedule=[dict(cbs=[lambda o=o: ParamScheduler({'lr':combined_cos(.5, 1e-3, o, 1e-4)})]) for o in (1e-2,1e-1)],
    inline=[dict(cbs=[lambda o=o: Callback(before_batch=lambda self: self.learn.opt.set_hyper('lr', o))]) for o in (1.,2.)],
    plateau=[{}, dict(cbs=[partial(ReduceLROnPlateau, 'valid_loss', patience=1)])],
    labels=[dict(get_y=partial(next_class, n=o)) for o in (0,1)],
    erasing=[{}, dict(tfms=[RandomErasing(p=.01)])])

@pytest.mark.parametrize('one, other', kinds.values(), ids=kinds)
def test_runs_that_differ_in_what_is_not_written_down(drawn, one, other):
    "Neither is taken for the other; each, made anew, for itself"
    def begin(resume, kwargs, out): return measured_fit(alike_learner(drawn, **kwargs), 1, 1e-3, Path(out), resume,
                                                        model='a', recipe='b', size=32, seed=1)
    for i,(a,b) in enumerate([(one,other), (other,one)]):
        rec = begin(False, a, f'{i}.json')
        assert begin(True, a, f'{i}.json')==rec
        with pytest.raises(Exception) as e: begin(True, b, f'{i}.json')
        assert one_line(e, f'{i}.json', 'another run')

def test_callbacks_of_the_fit_count_too(drawn):
    "But for one that only looks on"
    def begin(resume, *cbs): return measured_fit(alike_learner(drawn), 1, 1e-3, Path('a.json'), resume, cbs=cbs, model='a', recipe='b', seed=1)
    rec = begin(False, Times(0))
    assert begin(True, Times(0))==begin(True, Counts(), Times(0))==rec
    for other in ([], [Times(1)], [GradientClip(1e-6), Times(0)], [MixUp, Times(0)]):
        with pytest.raises(Exception) as e: begin(True, *other)
        assert one_line(e, 'a.json', 'different callbacks')

def test_a_function_that_a_library_has_made_is_told_with_its_numbers():
    assert told(combined_cos(.5, 1, 2, 3))==told(combined_cos(.5, 1, 2, 3))!=told(combined_cos(.5, 1, 2, 4))

def test_a_run_may_go_on_with_another_device(begun):
    "Which makes the same of the photos, but draws otherwise"
    one = load_json(begun/'done.json')
    gpu = deepcopy(one)
    gpu['setup'] |= dict(device='cuda', first_batch=[o+1 for o in one['setup']['first_batch']],
                         transforms=[*one['setup']['transforms'], 'fastai.data.transforms.IntToFloatTensor', 'fastai.data.transforms.Normalize'])
    check_same('f', one, gpu)
    gpu['setup']['device'] = one['setup']['device']
    with pytest.raises(CourseError): check_same('f', one, gpu)

def test_an_attribute_is_no_variable():
    "Of a callback that says `self.xb` in a notebook with a batch `xb`"
    before = told(written('def loss(p, y): return p.xb'))
    loss = written('xb = 1\ndef loss(p, y): return p.xb')
    assert told(loss)==before

def test_a_batch_of_fastai_s_is_told():
    loss = written('def loss(p, y): return p-xb')
    loss.__globals__['xb'] = TensorImage(torch.ones(200))
    one = told(loss)
    loss.__globals__['xb'] = TensorImage(torch.zeros(200))
    assert told(loss)!=one

@pytest.mark.parametrize('code', ['seen = []\ndef loss(p, y): seen.append(1.)', 'seen = {}\ndef loss(p, y): seen[len(seen)] = 1.', 'seen = []\ndef loss(p, y): seen[:] = [1.]',
                                  'seen = 0\ndef loss(p, y):\n    global seen\n    seen += 1', 'seen = torch.zeros(3)\ndef loss(p, y): seen.add_(1)'])
def test_what_a_function_changes_does_not_count(code):
    "As where a loss keeps its values in a list: it is the same run that goes on"
    loss = written(code)
    before = told(loss)
    loss.__globals__['seen'] = [2.]
    assert told(loss)==before

@pytest.mark.parametrize('code', ['class seen: step = 0\ndef loss(p, y): seen.step += 1',
                                  'class seen(torch.nn.Module):\n    step = 0\n    def forward(self): self.step += 1\nseen = seen()\ndef loss(p, y): seen()'])
def test_nor_does_what_it_counts_in_a_class(code):
    loss = written(code)
    before = told(loss)
    loss.__globals__['seen'].step = 5
    assert told(loss)==before

def test_a_run_is_the_same_in_another_process(drawn):
    "Where the same lines stand elsewhere in another file, after other work, and with sets in another order"
    code = '''
import sys, json; sys.path.insert(0, sys.argv[1])
from test_resume import *
def outside(x): return x in {'a','b','c'} or GAIN
GAIN = 2
def loss(pred, y, k={'x','y','z'}): return F.cross_entropy(pred, y)*(1 if outside('a') else len(k))
learn = alike_learner(Path(sys.argv[2]), loss=lambda: loss, cbs=[partial(Times, 1)], tfms=aug_transforms())
print(json.dumps(runs._seen(learn, lambda *args: None, 32, Path('a'), False)))
'''
    said = []
    for i,name in enumerate(('one.py','two.py')):
        Path(name).write_text('\n'*i*7 + code)
        env = dict(os.environ, PYTHONHASHSEED=str(i+1), OMP_NUM_THREADS=str(i+1))
        out = subprocess.run([sys.executable, name, Path(__file__).parent, drawn], env=env, capture_output=True, text=True, check=True)
        said.append(json.loads(out.stdout.splitlines()[-1]))
    check_same('f', *said)

def test_the_same_learner_goes_on(drawn):
    "In a notebook the cell is run again; by then the net has learned something"
    def fit(resume): return measured_fit(learn, 2, 1e-2, file, resume, model='fcn', recipe='small', size=32, seed=42)
    learn = tiny_learner(drawn, cbs=CtrlC('before_batch',1,6))
    with pytest.raises(KeyboardInterrupt): fit(False)
    learn.remove_cbs(CtrlC)
    assert fit(True)['complete'] and fit(True)['complete']

def test_the_same_learner_goes_on_with_growing_images(drawn):
    "Though its loaders make larger ones by then, and mirror others"
    r = replace(recipe('tiny'), bs=16, start_size=16, flip='alternating')
    def fit(resume): return measured_fit(learn, 4, 1e-2, file, resume, model='resblock', recipe='small', size=32, seed=42)
    learn = recipe_learner(drawn, r, 42, None, 'fp32')
    learn.add_cb(CtrlC('before_batch',1,6))
    with learn.no_bar(), pytest.raises(KeyboardInterrupt): fit(False)
    learn.remove_cbs(CtrlC)
    with learn.no_bar(): assert fit(True)['complete'] and fit(True)['complete']

def test_a_record_that_says_less(drawn):
    "An earlier version's, without what is compared since, or with fewer settings, is of the same run"
    def fit(resume, **settings): return measured_fit(tiny_learner(drawn), 1, 1e-2, file, resume, model='a', recipe='b',
                                                     size=32, seed=42, settings=settings)
    rec = fit(False, a=1)
    for k in ('first_answer','first_weights','labels','transforms'): rec['setup'].pop(k)
    save_json(file, rec)
    assert fit(True, a=1, newer=2)==rec
    with pytest.raises(Exception) as e: fit(True, a=2, newer=2)
    assert one_line(e, file, 'settings')

# --- nothing is drawn before the fit ----------------------------------------------------------------------------
@pytest.mark.parametrize('loaders', [get_data, cached_data, cached_chapter_data])
def test_looking_at_a_learner_draws_nothing(drawn, loaders):
    "A seed gives the run that it always gave: the random states at the start of the fit are those before the call"
    states = []
    class Look(Callback):
        order = -1000
        def before_fit(self): states.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(),
                                             [dl.rng.getstate() for dl in self.dls.loaders]))
    set_seed(3)
    learn = get_learner(loaders(drawn, 24, 16, 16), get_fcn(10, widths=(4,8)), 'fp32', cbs=Look())
    look, = [o for o in learn.cbs if isinstance(o, Look)]
    look.before_fit()
    measured_fit(learn, 1, 1e-2, Path('out/fcn-small-s3.json'), model='fcn', recipe='small', size=16, seed=3)
    (torch_before,*before),*_,(torch_at,*at) = states
    assert torch.equal(torch_before, torch_at) and before==at
