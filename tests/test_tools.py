"fastai's own tools work with the course's fast loaders as with fastai's, and say the same"
import pytest, torch
from dataclasses import replace
from fastai.vision.all import *
from PIL import Image
from resnet_course.kit.arrays import array_dls, load_arrays, PadCrop
from resnet_course.data import get_data
from resnet_course.fcn import get_fcn
from resnet_course.loading import cached_chapter_data, cached_data
from resnet_course.recipe import recipe, recipe_learner
from resnet_course.training import get_learner
from conftest import one_line, photo

small = dict(presize=40, resize=32, bs=16)
def learner(dls): return get_learner(dls, get_fcn(dls.c, widths=(8,8)), 'fp32')
def recipes_own(path, **changes): return recipe_learner(path, replace(recipe('tiny'), smoothing=0., **changes), precision='fp32')
stats = Normalize.from_stats(*imagenet_stats)
makers = dict(fastai=lambda p: learner(get_data(p, **small)),
    cached=lambda p: learner(cached_data(p, **small)),
    chapter=lambda p: learner(cached_chapter_data(p, **small)), recipe=recipes_own,
    mirrored=lambda p: recipes_own(p, flip='alternating'), averaged=lambda p: recipes_own(p, ema=.9),
    growing=lambda p: recipes_own(p, start_size=16), array=lambda p: learner(array_dls(load_arrays(p), p, 16)),
    padded=lambda p: learner(array_dls(load_arrays(p), p, 16, [stats, PadCrop(4)])))

@pytest.fixture(params=makers, scope='module')
def learn(request, drawn):
    "One for all tests, which leave it as it is"
    set_seed(1)
    learn = makers[request.param](drawn)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3); yield learn
@pytest.fixture(autouse=True)
def no_figures(): yield; plt.close('all')

def val_files(learn): return get_image_files(learn.dls.path/'val').sorted()

def test_tta(learn):
    n = len(val_files(learn))
    plain,y = learn.get_preds()
    p,targets = learn.tta(n=2, beta=None)[0],learn.tta(n=1)[1]
    assert p[0].shape==p[1].shape==(n,10) and (targets==y).all()
    assert torch.allclose(p[1], plain, atol=1e-4)          # half of it is the plain prediction
    again,_ = learn.get_preds()
    assert torch.allclose(again, plain, atol=1e-4)         # and nothing is left changed

def test_tta_sees_other_pictures(learn):
    augments = any(isinstance(o, (PadCrop,Flip)) for o in learn.dls.after_batch.fs)
    if not augments and not hasattr(learn.dls.valid.dataset, 'crops'): pytest.skip('it trains on the pictures as they are')
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.xb[0].cpu().clone())
    with learn.added_cbs(Look()): learn.tta(n=2)
    a,b,c = [torch.cat(o) for o in chunked(seen, len(seen)//3)]
    assert all((x!=y).flatten(1).any(1).float().mean()>.8 for x,y in ((a,b),(a,c),(b,c)))

@pytest.mark.parametrize('ds_idx', [1,0])
def test_interpretation(learn, ds_idx):
    interp = ClassificationInterpretation.from_learner(learn, ds_idx=ds_idx)
    interp.plot_confusion_matrix()
    assert interp.confusion_matrix().sum()==len(learn.dls[ds_idx].dataset)
    assert all(a!=b for a,b,_ in interp.most_confused())
    interp.plot_top_losses(4)
    titles = [ax.get_title() for ax in plt.gcf().axes[:4]]
    losses,idxs,items = interp.top_losses(4, items=True)
    _,preds,targets,_,_ = interp[idxs]
    own = learn.dls[ds_idx].new(shuffle=False, drop_last=False)
    y = torch.cat([b[1].cpu() for b in own])
    assert (targets==y[idxs]).all()
    assert [t.split('/')[1].strip() for t in titles]==[learn.dls.vocab[i] for i in targets]
    assert [float(t.split('/')[2]) for t in titles]==pytest.approx(losses.tolist(), abs=.006)
    if isinstance(items[0], Path): assert [o.parent.name for o in items]==[learn.dls.vocab[i] for i in targets]
    if ds_idx: assert torch.allclose(-preds[range(4),targets].log(), torch.as_tensor(losses), atol=1e-3)   # the same pictures
    interp.show_results([0,1])

def test_show(learn):
    learn.show_results(max_n=4); learn.show_results(ds_idx=0, max_n=4)
    for dl in learn.dls.loaders: dl.show_batch(max_n=4); dl.show_batch(max_n=4, unique=True)
    titles = {o for ax in plt.gcf().axes for o in ax.get_title().split('\n')}
    assert titles and titles<=set(learn.dls.vocab)

ways = dict(path=Path, text=str, bytes=Path.read_bytes, picture=Image.open, array=lambda f: np.array(Image.open(f)))
def test_predict_as_in_validation(learn):
    files = val_files(learn)
    want,y = learn.get_preds(dl=learn.dls.valid)
    order = [learn.dls.vocab[i] for i in y]
    assert order==[f.parent.name for f in files]   # the loaders' order is the files'
    for i in (3,17):
        for way in ways.values():
            name,number,probs = learn.predict(way(files[i]))
            assert torch.allclose(probs, want[i], atol=1e-3) and name==learn.dls.vocab[int(number)]
    dl = learn.dls.test_dl(files)
    preds,targets = learn.get_preds(dl=dl)
    assert torch.allclose(preds, want, atol=1e-3) and targets is None and len(dl.one_batch())==1
    dl.show_batch(max_n=2)

def test_predict_of_others(learn, tmp_path):
    text = tmp_path/'a.jpg'
    text.write_text('no photo')
    for f,words in ((text,'not a readable image'), (tmp_path/'nope.jpg','no such file')):
        with pytest.raises(Exception) as e: learn.predict(f)
        assert one_line(e, f, words)
    large = photo(tmp_path/'large.png', size=(90,60))
    if not hasattr(learn.dls.valid_ds, 'x'): assert learn.predict(large)[0] in learn.dls.vocab
    else:
        with pytest.raises(Exception) as e: learn.predict(large)
        assert one_line(e, '32 by 32 pixels', '60 by 90', 'resize')

def test_labels_where_they_are_asked_for(learn, tmp_path):
    if isinstance(learn.dls.valid_ds, Datasets): pytest.skip("fastai's own loader has another way")
    items = list(learn.dls.valid.items)
    want = list(learn.validate())
    assert list(learn.validate(dl=learn.dls.test_dl(items, with_labels=True)))==pytest.approx(want, abs=1e-3)
    with pytest.raises(Exception) as e: learn.dls.test_dl([photo(tmp_path/'a.jpg', size=(32,32))], with_labels=True)
    assert one_line(e, 'with_labels')

def test_export(learn):
    files = val_files(learn)
    want = [learn.predict(f) for f in files[:3]]
    learn.export('a.pkl')
    other = load_learner('a.pkl')
    with other.no_bar(), other.no_logging():
        for f,(name,_,probs) in zip(files, want):
            got = other.predict(f)
            assert got[0]==name and torch.allclose(got[2], probs, atol=1e-3)
        preds,_ = other.get_preds(dl=other.dls.test_dl(files[:3]))
    assert torch.allclose(preds, torch.stack([o[2] for o in want]), atol=1e-3) and other.dls.vocab==learn.dls.vocab
    assert not any(map(len, (dl.dataset for dl in other.dls.loaders)))   # no photo goes with it
    assert len(learn.dls.train)==4   # and the learner keeps its own
