"Recipes: every part of one has an effect, a stopped run goes on, and what is saved can be used"
import pytest, torch
from dataclasses import asdict, replace
from fastai.vision.all import *
from safetensors.torch import save_file
from resnet_course.kit.files import CourseError
from resnet_course.fcn import get_fcn
from resnet_course.ingredients import first_conv, kept, whiten, whitening_filters
from resnet_course.recipe import (load_trained, predict_view, Recipe, recipe, recipe_learner, recipe_net, resized,
                                  save_weights, train)
from conftest import CtrlC, one_line, photo, photo_set

base = Recipe('test', model='resblock', epochs=2, size=32, presize=32, bs=16, min_scale=.6)
full = replace(base, name='full', epochs=3, flip='alternating', ema=.9, mixup=.3, act='SiLU', down='avg', start_size=16)
stem = f'{full.model}-{full.name}-s42'

def run(path, r=full, **kwargs): return train(path, r, out=Path('out'), precision='fp32', **kwargs)

def outcome(rec):
    "All that must not depend on whether the run was stopped"
    weights = load_trained(Path('out')/f"{rec['name']}.safetensors").net.state_dict()
    history = [{k:v for k,v in o.items() if k!='seconds'} for o in rec['history']]
    return history, rec['accuracy_tta'], rec['views'], {k:v.tolist() for k,v in weights.items()}

def ctrl_c(*args):
    "A class of callbacks, as `defaults.callbacks` has them, that press Ctrl-C where `args` say"
    class Pressed(CtrlC):
        def __init__(self): super().__init__(*args)
    return Pressed

def steps(path, r, seed=42):
    "The weights and the losses after the first epoch"
    learn = recipe_learner(path, r, seed, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, r.lr)
    return [o.tolist() for o in kept(learn.model).state_dict().values()], list(map(float, learn.recorder.losses))

# --- the fields of a recipe -------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def usual(drawn):
    torch.set_num_threads(1)
    return steps(drawn, base)

@pytest.mark.parametrize('change', [dict(model='resblock2'), dict(size=48), dict(start_size=16), dict(presize=24),
    dict(bs=8), dict(opt='adam'), dict(opt='sgd'), dict(opt='ranger'), dict(lr=1e-3), dict(wd=.1), dict(wd_bn_bias=True),
    dict(min_scale=.9), dict(min_scale=1), dict(min_scale=None), dict(flip='alternating'), dict(smoothing=0.),
    dict(mixup=.3), dict(ema=.9), dict(act='Mish'), dict(act='SiLU'), dict(act='GELU'), dict(down='avg'),
    dict(down='blur'), dict(shortcut='max_blur'), dict(whiten=True)], ids=str)
def test_every_field_has_an_effect(drawn, usual, change): assert steps(drawn, replace(base, **change))!=usual

def test_the_same_seed_gives_the_same_run(drawn):
    a,b,other = steps(drawn, full), steps(drawn, full), steps(drawn, full, seed=1)
    assert a==b and a!=other

def test_the_other_fields(drawn):
    "Those that `fit` takes, and that only nets with a stem have"
    rec = run(drawn, replace(base, schedule='one_cycle', epochs=1))
    flat = run(drawn, replace(base, epochs=1), overwrite=True)
    assert rec['history'][0]['train_loss']!=flat['history'][0]['train_loss'] and rec['epochs']==1
    x = torch.randn(1,3,64,64)
    net,whole = (recipe_net(Recipe('x', stem_pool=o), 10) for o in (True,False))
    assert net.stem(x).shape[-1]==16 and whole.stem(x).shape[-1]==32

def test_weight_decay_spares_batch_norm_and_bias(drawn):
    "Decay alone: with no gradient, kernels shrink, and batch norm and bias only if asked for"
    for r,shrinks in ((base,False), (replace(base, wd_bn_bias=True),True)):
        learn = recipe_learner(drawn, replace(r, wd=.5, lr=.1), precision='fp32')
        learn.create_opt()
        learn.opt.set_hyper('wd', .5); learn.opt.set_hyper('lr', .1)
        for p in learn.model.parameters(): p.data.fill_(1.); p.grad = torch.zeros_like(p)
        learn.opt.step()
        for name,p in learn.model.named_parameters(): assert (p.max()<1)==(p.ndim>1 or shrinks), name

@pytest.mark.parametrize('change, words', [(dict(opt='rangers'), ["no opt 'rangers'", 'ranger']),
    (dict(act='Relu'), ["no act 'Relu'", 'ReLU']), (dict(down='pool'), ["no down 'pool'"]),
    (dict(schedule='cosine'), ['schedule']), (dict(flip='both'), ['flip']), (dict(val='all'), ['val']),
    (dict(epochs=0), ['0 epochs']), (dict(bs=1), ['bs 1', '2 photos']), (dict(presize=0), ['presize 0']),
    (dict(size=16), ['size 16', '32']), (dict(start_size=64), ['start_size 64']),
    (dict(min_scale=None, flip='alternating'), ["chapter 14's"]),
    (dict(min_scale=None, start_size=16), ["chapter 14's"])])
def test_what_a_recipe_cannot_be(change, words):
    with pytest.raises(Exception) as e: replace(base, **change)
    assert one_line(e, *words)

# --- a run ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def whole(drawn, tmp_path_factory):
    "The outcome of the run that is not stopped"
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path_factory.mktemp('whole'))
        torch.set_num_threads(1)
        return outcome(run(drawn))

@pytest.mark.parametrize('stop', [ctrl_c('before_batch',1,6), ctrl_c('after_step',1,4), ctrl_c('before_validate',1),
    ctrl_c('after_epoch',1)], ids=['middle','after_the_step','validation','between'])
def test_stopped_and_resumed(stop, drawn, whole, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(defaults, 'callbacks', [*defaults.callbacks, stop])
        with pytest.raises(KeyboardInterrupt): run(drawn)
    assert not Path(f'out/{stem}.safetensors').exists()
    assert outcome(run(drawn, resume=True))==whole

def test_a_finished_run_is_kept(drawn, whole):
    first = run(drawn)
    written = {f:f.stat().st_mtime_ns for f in Path('out').ls()}
    assert run(drawn, resume=True)==first and written=={f:f.stat().st_mtime_ns for f in Path('out').ls()}
    Path(f'out/{stem}.safetensors').unlink()   # the checkpoint still has the weights
    assert outcome(run(drawn, resume=True))==whole

def test_the_record(drawn):
    rec = run(drawn, epochs=1, seed=3)
    assert rec['settings']==asdict(replace(full, epochs=1)) and rec['command'].startswith('resnet_course reproduce')
    assert rec['views']['whole']==rec['accuracy'] and 0<=rec['accuracy_tta']<=1
    assert rec['params']==sum(p.numel() for p in recipe_net(full, 10).parameters())   # the average's are not counted
    assert rec==json.loads(Path('out/resblock-full-s3.json').read_text())
    state = torch.load('out/resblock-full-s3.pt', weights_only=True)['model']
    for k,o in load_trained('out/resblock-full-s3.safetensors').net.state_dict().items():
        assert (o==state[f'average.{k}']).all(), k   # and it is the average that is kept
    rec = train(drawn, recipe('tiny'), 'fcn', epochs=1, size=48, out='out', precision='fp32')
    assert (rec['model'],rec['size'],rec['settings']['presize'])==('fcn',48,60)
    assert rec['command']==('resnet_course train --recipe tiny --model fcn --data sample --epochs 1 --size 48 --seed 42 '
                            '--precision fp32')

@pytest.mark.parametrize('channels, ks', [(3,3), (1,5), (3,1), (3,7)])
def test_whitened_patches(channels, ks):
    "Are uncorrelated and vary alike, in the directions in which there is anything"
    torch.manual_seed(0)
    xb = F.avg_pool2d(torch.randn(20, channels, 72, 72), 3)*5   # neighbours are alike, as in photos
    filters = whitening_filters(xb, ks)
    assert filters.shape==(channels*ks*ks, channels, ks, ks)
    cov = F.conv2d(xb, filters, stride=ks).transpose(0,1).flatten(1).cov().view(len(filters), -1)
    assert torch.allclose(cov, torch.eye(len(filters)), atol=.05)

@pytest.mark.parametrize('xb', [torch.zeros(2,3,16,16), torch.ones(1,3,6,6), torch.randn(1,3,6,6), torch.randn(4,1,16,16).expand(-1,3,-1,-1)])
def test_whitening_what_hardly_varies(xb):
    assert whitening_filters(xb, 3).isfinite().all()

def test_whitening_is_the_same_wherever_eigenvectors_point(monkeypatch):
    xb,eigh = torch.randn(8,3,30,30),torch.linalg.eigh
    here = whitening_filters(xb, 3)
    def turned(x):
        values,vectors = eigh(x)
        return values,vectors*(1-2*(torch.arange(len(values))%2))
    monkeypatch.setattr(torch.linalg, 'eigh', turned)
    assert torch.equal(whitening_filters(xb, 3), here)

@pytest.mark.parametrize('nf', [2, 5, 54, 64])
def test_a_whitened_convolution(nf):
    conv = nn.Conv2d(3, nf, 3)
    random_start = conv.weight.detach().clone()
    whiten(conv, torch.randn(8,3,30,30))
    n = min(nf//2, 27)
    assert torch.equal(conv.weight[n:2*n], -conv.weight[:n]) and torch.equal(conv.weight[2*n:], random_start[2*n:])
    assert not torch.equal(conv.weight[:n], random_start[:n]) and conv.weight.requires_grad

def looks_first_at_pixels(n): return nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, n))
def test_whitening_a_net_without_a_first_convolution(drawn):
    with pytest.raises(CourseError, match='whiten') as e: recipe_learner(drawn, replace(base, whiten=True), model=looks_first_at_pixels)
    assert one_line(e, 'Linear', 'whiten=False')

class NoLayers(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n,3,3,3)/9)
    def forward(self, x): return F.conv2d(x, self.w).mean((2,3))
def test_whitening_a_net_without_layers(drawn):
    with pytest.raises(CourseError) as e: recipe_learner(drawn, replace(base, whiten=True), model=NoLayers)
    assert one_line(e, 'no layer of weights', 'whiten=False')

@pytest.mark.parametrize('make', [lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), lambda: nn.Conv2d(3, 8, 3, dilation=2)],
                         ids=['computed weights','dilation'])
def test_whitening_a_convolution_that_would_not_see_it(make):
    with pytest.raises(CourseError) as e: first_conv(nn.Sequential(make(), nn.ReLU()), 32)
    assert one_line(e, 'plain', 'whiten=False')

def test_lr_find_leaves_the_sizes_of_images_alone(drawn):
    learn = recipe_learner(drawn, replace(base, size=48, start_size=32))
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert [(dl.dataset.size,dl.dataset.epoch) for dl in learn.dls.loaders]==[(48,0)]*2

def test_too_much_is_held_out(drawn):
    with pytest.raises(CourseError) as e: recipe_learner(drawn, replace(base, hold_out=.99))
    assert one_line(e, 'hold_out 0.99', 'of 64 photos 1', 'hold out fewer')

@pytest.mark.parametrize('share', [.25, .001, .9])
@pytest.mark.parametrize('flip', ['random','alternating'])
def test_held_out_photos(drawn, share, flip):
    "Are of the training set, with their labels, and are not trained on; the validation photos are not looked at"
    r = replace(base, hold_out=share, flip=flip)
    train_dl,valid_dl = recipe_learner(drawn, r, seed=1, precision='fp32').dls.loaders
    assert len(valid_dl.dataset)==max(round(share*64), 1) and {*train_dl.items} | {*valid_dl.items}=={*get_image_files(drawn/'train')}
    assert not {*train_dl.items} & {*valid_dl.items} and len(train_dl)>0
    for dl in (train_dl,valid_dl):
        for file,y in zip(dl.items, dl.dataset.labels): assert file.parent.name==dl.dataset.vocab[y]
    assert valid_dl.dataset.flip==0 and train_dl.dataset.crops!=valid_dl.dataset.crops
    other = recipe_learner(drawn, r, seed=2, precision='fp32').dls.valid
    assert share>=.5 or {*other.items}!={*valid_dl.items}

def test_the_record_of_held_out_photos(drawn):
    r = replace(base, hold_out=.25, epochs=1)
    rec = run(drawn, r)
    assert (rec['data']['n_train'],rec['data']['n_val'])==(48,16) and rec['settings']['hold_out']==.25
    assert (16*rec['accuracy'])%1<1e-4 or (16*rec['accuracy'])%1>1-1e-4
    with pytest.raises(CourseError): run(drawn, replace(r, hold_out=.5), resume=True)
    assert run(drawn, replace(r, hold_out=0.), overwrite=True)['data']['n_train']==64

@pytest.mark.parametrize('val', ['whole','middle'])
def test_views_are_of_the_last_size_and_of_the_square_that_counts(drawn, val):
    "Of a recipe that grows: one view must not change what the next one shows"
    r,other = replace(full, val=val),'middle' if val=='whole' else 'whole'
    rec = run(drawn, r)
    assert rec['views'][val]==rec['accuracy']
    learn = recipe_learner(drawn, r, precision='fp32')
    with learn.no_bar(), learn.no_logging():
        learn.fit(4, 1e-2)   # one epoch more than is planned
        seen = learn.get_preds()[0]
        learn.validate()
    assert (predict_view(learn, val)[0]==seen).all() and (predict_view(learn, other)[0]!=seen).any()
    assert learn.dls.valid.dataset.size==full.size

def test_a_record_without_views_is_not_a_finished_run(drawn, whole):
    "As it is left by a run that was stopped after its last epoch, in a folder with the weights of another"
    run(drawn)
    file = Path(f'out/{stem}.json')
    rec = json.loads(file.read_text())
    file.write_text(json.dumps({k:v for k,v in rec.items() if k not in ('views','accuracy_tta')}|dict(complete=False)))
    assert outcome(run(drawn, resume=True))==whole

def test_old_weights_go_before_a_new_run(drawn, monkeypatch):
    run(drawn)
    with monkeypatch.context() as m:
        m.setattr(defaults, 'callbacks', [*defaults.callbacks, ctrl_c('before_batch',1)])
        with pytest.raises(KeyboardInterrupt): run(drawn, overwrite=True)
    assert not Path(f'out/{stem}.safetensors').exists()

def test_a_refused_run_leaves_the_old_weights(drawn):
    run(drawn)
    weights = Path(f'out/{stem}.safetensors')
    before = weights.read_bytes()
    with pytest.raises(Exception) as e: run(drawn, epochs=4, resume=True)
    assert one_line(e, 'another run', '--resume') and weights.read_bytes()==before

def test_what_fastai_does_with_the_classes(drawn):
    "A list of them fastai would take for several vocabularies"
    learn = recipe_learner(drawn, base, precision='fp32')
    with learn.no_bar(), learn.no_logging():
        assert ClassificationInterpretation.from_learner(learn).confusion_matrix().shape==(10,10)
        assert learn.predict(get_image_files(drawn)[0])[0] in learn.dls.vocab

def test_your_own_net(drawn):
    def two_layers(n):
        return nn.Sequential(ConvLayer(3,8,stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,n))
    rec = run(drawn, base, model=two_layers)
    file = Path('out/two_layers-test-s42.safetensors')
    assert rec['command']=="train(path, recipe, two_layers, 2, 32, 42, precision='fp32')" and rec['model']=='two_layers'
    own = train(drawn, recipe('tiny'), two_layers, epochs=1, out=Path('own'), precision='fp32')
    assert own['command'].startswith('train(path, recipe, two_layers, 1, 32, 42,')
    assert load_trained(file, two_layers).net[3].out_features==10
    with pytest.raises(Exception) as e: load_trained(file)
    assert one_line(e, file, 'a net of your own, two_layers', '`model`') and 'resnet' not in str(e.value)
    with pytest.raises(Exception) as e: load_trained(file, get_fcn)
    assert one_line(e, file, 'another net than get_fcn', '`model`')
    with pytest.raises(Exception) as e: run(drawn, base, model=partial(get_fcn, widths=(8,8)))
    assert one_line(e, 'partial', 'no name')
    with pytest.raises(Exception) as e: run(drawn, base, model=lambda n: two_layers(n))
    assert one_line(e, 'no name')
    with pytest.raises(Exception) as e: run(drawn, 'tiny')
    assert one_line(e, "'tiny'", '`recipe(name)`')

@pytest.mark.parametrize('text', ['', '{"complete":', '[]'])
def test_a_damaged_record(drawn, text):
    Path('out').mkdir()
    Path(f'out/{stem}.json').write_text(text)
    with pytest.raises(Exception) as e: run(drawn, resume=True)
    assert one_line(e, f'{stem}.json', 'not a complete record', 'another folder')

@pytest.mark.parametrize('kwargs, words', [(dict(model='resnet19'), ["no model 'resnet19'", 'resnet18']),
    (dict(epochs=0), ['0 epochs']), (dict(size=8), ['size 8'])])
def test_errors_before_anything_is_written(drawn, kwargs, words):
    with pytest.raises(Exception) as e: run(drawn, base, **kwargs)
    assert one_line(e, *words) and not Path('out').exists() and not Path('runs').exists()

def test_resized():
    assert resized(recipe('resnet50-20ep'), 320)==replace(recipe('resnet50-20ep'), size=320, presize=448, start_size=192)
    assert resized(base, base.size)==base

# --- the weights ------------------------------------------------------------------------------------------------
def test_own_photos():
    "Three classes, photos of any shape, batches smaller than asked for; the names come out again"
    path = photo_set(Path('mine'), ('ant','bee','cat'), ('ant','bee','cat'), n=3)
    photo(path/'train'/'ant'/'wide.png', size=(90,40))
    photo(path/'val'/'bee'/'grey.png', 128, size=(33,70), mode='L')
    rec = run(path, replace(base, bs=64))
    trained = load_trained(Path('out')/'resblock-test-s42.safetensors')
    files = get_image_files(path/'val').sorted()
    got = trained.predict(files)
    assert trained.classes==['ant','bee','cat'] and list(got.index)==files and set(got['class'])<=set(trained.classes)
    assert np.isclose((got['class']==[f.parent.name for f in files]).mean(), rec['accuracy'])
    assert trained.predict(o for o in files).equals(got)
    one = trained.predict(str(files[4]))
    assert one['class'].item()==got['class'].iloc[4]
    assert np.isclose(one.probability.item(), got.probability.iloc[4], atol=1e-5)
    x = np.random.default_rng(0).integers(0, 256, (32,72,3)).astype(np.uint8)
    for name,o in (('wide.png',x), ('middle.png',x[:,20:52])): PILImage.create(o).save(path/name)
    a,b = trained.predict([path/'wide.png', path/'middle.png']).probability
    assert a==b   # it looks at the middle
    bad = path/'bad.jpg'
    bad.write_text('x')
    with pytest.raises(Exception) as e: trained.predict(bad)
    assert one_line(e, bad)
    with pytest.raises(Exception) as e: trained.predict([])
    assert one_line(e, 'no photo')

def test_files_without_a_net(drawn):
    file = Path('a.safetensors')
    def error():
        with pytest.raises(Exception) as e: load_trained(file)
        return e
    assert one_line(error(), file, 'no such file')
    file.mkdir();                                                  assert one_line(error(), file, 'holds no net')
    file.rmdir()
    file.write_bytes(b'x'*100);                                    assert one_line(error(), file, 'holds no net')
    save_file({'a':torch.zeros(1)}, file);                         assert one_line(error(), file, 'holds no net')
    save_file({'a':torch.zeros(1)}, file, dict(resnet_course='x'));assert one_line(error(), file, 'holds no net')
    save_weights(file, nn.Linear(1,1));                            assert one_line(error(), file, 'holds no net')
    about = dict(recipe=dict(asdict(base), colour='red'), classes=['a','b'])
    save_file({'a':torch.zeros(1)}, file, dict(resnet_course=json.dumps(about)))
    assert one_line(error(), file, 'another version')
    run(drawn, base)
    good = Path('out/resblock-test-s42.safetensors')
    file.write_bytes(good.read_bytes()[:-10]);                     assert one_line(error(), file, 'holds no net')

def test_the_average_is_what_is_kept(drawn):
    "Also in the learner's own validation"
    learn = recipe_learner(drawn, full, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    net,average = learn.model.net.state_dict(),learn.model.average.state_dict()
    assert all((net[k]!=average[k]).any() for k in net if k.endswith('.0.weight'))
    acc = learn.validate()[1]
    p,y = predict_view(learn)
    assert acc==accuracy(p,y)==learn.recorder.values[-1][-1]
    learn.model.average.load_state_dict(net)
    assert (predict_view(learn)[0]!=p).any()

def test_mirrored_and_middle(drawn):
    learn = recipe_learner(drawn, base, precision='fp32')
    p,y = predict_view(learn)
    assert (predict_view(learn, mirrored=True)[0]!=p).any() and (predict_view(learn, 'middle')[0]!=p).any()
    assert (predict_view(learn)[0]==p).all()
    xb = torch.cat([xb for xb,_ in learn.dls.valid])
    with torch.no_grad(): flipped = learn.model.eval()(xb.flip(3)).softmax(1)
    assert torch.allclose(predict_view(learn, mirrored=True)[0], flipped.as_subclass(Tensor), atol=1e-2)

def test_weights_alone_are_not_trained_over(drawn, tmp_path):
    r = replace(recipe('tiny'), epochs=1)
    kept = tmp_path/f'{r.model}-{r.name}-s42.safetensors'
    kept.write_bytes(b'weights')
    for resume in (False,True):
        with pytest.raises(CourseError) as e: train(drawn, r, out=tmp_path, resume=resume)
        assert one_line(e, kept, '--overwrite') and kept.read_bytes()==b'weights'

def test_a_name_that_no_system_has(drawn, tmp_path):
    r = replace(recipe('tiny'), epochs=1)
    train(drawn, r, out=tmp_path)
    net = load_trained(tmp_path/f'{r.model}-{r.name}-s42.safetensors')
    with pytest.raises(CourseError) as e: net.predict('a'*300+'.jpg')
    assert one_line(e, 'aaa')
