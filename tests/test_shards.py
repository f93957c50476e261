"Photos in shards: the same ones as in the folder, each once, by each process its own; and a run on them goes on in mid-epoch"
import json, sys, fsspec, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from fastai.vision.all import *
from resnet_course.kit.files import CourseError, shard_index
from resnet_course.kit.photos import fingerprint, load_photo, photos_by_class
from resnet_course.kit.shards import class_counts, make_shards, ShardPhotos
from resnet_course.kit.checkpoint import _Rest
from resnet_course.loading import AheadDL, cached_data
from resnet_course.kit.runs import measured_fit
from resnet_course.fcn import get_fcn
from resnet_course.training import get_learner
from conftest import CtrlC, one_line, photo, photo_set

@pytest.fixture(scope='module')
def shards(drawn, tmp_path_factory):
    make_shards(drawn, dest:=tmp_path_factory.mktemp('shards')/'set', group=2**12, most=3*2**13)
    return dest

def photos_of(path): return sorted((c, load_photo(f, 32).tobytes()) for of in photos_by_class(path).values() for c,fs in of.items() for f in fs)

def in_shards(path):
    p = ShardPhotos(path, 32)
    return sorted((p.index['classes'][y], x.tobytes()) for x,y in zip(p, np.concatenate(p.labels)))

def test_the_same_photos(drawn, shards):
    assert in_shards(shards)==photos_of(drawn)
    assert class_counts(shards)==class_counts(drawn) and fingerprint(shards)==fingerprint(drawn)
    files = sorted(shards.glob('train-*'))
    assert len(files)>3 and all(len(set(pq.read_table(f)['label'].to_pylist()))>3 for f in files)   # each has several classes

def test_what_others_have_written(drawn, shards, tmp_path):
    "In their layout, and elsewhere: only an index is made"
    far = fsspec.filesystem('memory')
    for f in shards.glob('*.parquet'): far.pipe(f"/bucket/data/{f.name.replace('val','validation')}", f.read_bytes())
    index = make_shards('memory://bucket', tmp_path/'far')
    assert [o.name for o in (tmp_path/'far').iterdir()]==['shards.json'] and index['splits']['val'][0][0].startswith('data/validation-')
    assert in_shards(tmp_path/'far')==photos_of(drawn) and class_counts(tmp_path/'far')==class_counts(drawn)
    make_shards(shards, tmp_path/'near')
    assert in_shards(tmp_path/'near')==photos_of(drawn)

def test_photos_come_before_shards_that_lie_among_them(drawn, shards, tmp_path):
    path = Path(shutil.copytree(drawn, tmp_path/'set [1]'))
    shutil.copytree(shards, path/'old')
    (path/'notes.parquet').write_bytes(b'notes')
    photo(next((path/'train').iterdir())/'new.jpg')
    assert make_shards(path, tmp_path/'new')['fingerprint']==fingerprint(path)!=fingerprint(shards)
    make_shards(path/'old', tmp_path/'index')   # in a folder with a name that is a pattern
    assert in_shards(tmp_path/'index')==photos_of(drawn)

@pytest.mark.parametrize('where', ['unlabelled/a.jpg','test/cat/a.jpg'])
def test_a_broken_photo_that_is_not_of_the_set(tmp_path, where):
    path = photo_set(tmp_path/'set')
    (path/where).parent.mkdir(parents=True)
    (path/where).write_bytes(b'no photo')
    make_shards(path, tmp_path/'shards')
    assert in_shards(tmp_path/'shards')==photos_of(path)
    (used := next((path/'train').rglob('*.jpg'))).write_bytes(b'no photo')
    refused(path, tmp_path/'new', used, 'not a readable image')

def test_large_photos_count_as_what_they_are(tmp_path):
    "A photo larger than a group is one; how many groups are kept goes by the largest"
    path = photo_set(tmp_path/'set')
    largest = max(f.stat().st_size for f in path.rglob('*.jpg'))
    index = make_shards(path, tmp_path/'shards', group=100)
    assert index['largest']==largest>100
    assert ShardPhotos(tmp_path/'shards', 32, most=3*largest).kept.cache_parameters()['maxsize']==3

@pytest.mark.faults('a shard cannot be read')
def test_a_photo_that_is_missing_in_a_shard(shards, tmp_path):
    here = Path(shutil.copytree(shards, tmp_path/'set'))
    for file in here.glob('*.parquet'):
        table = pq.read_table(file)
        rows = [*table['image'].to_pylist()[:-2], dict(bytes=None, path='cat/1.jpg'), None]
        pq.write_table(table.set_column(0, table.schema.field('image'), [pa.array(rows, table.schema.field('image').type)]), file)
    make_shards(here, tmp_path/'index')
    photos = ShardPhotos(tmp_path/'index', 32)
    n = photos.ends[0]
    for i,words in ((n-2,'cat/1.jpg in train-'), (n-1,'a photo in train-')):
        with pytest.raises(CourseError) as e: photos[int(i)]
        assert one_line(e, words)

class Reading(ShardPhotos):
    "Notes which row groups are read"
    def __init__(self, *args, **kwargs):
        self.read = []
        super().__init__(*args, **kwargs)
    def _group(self, g):
        self.read.append(g)
        return super()._group(g)

def reading(path, monkeypatch, **kwargs):
    monkeypatch.setattr('resnet_course.loading.ShardPhotos', partial(Reading, **kwargs))
    return cached_data(path, 32, 32, 8)

@pytest.mark.parametrize('n', [1,2,3])
def test_each_process_reads_its_own(n, shards, monkeypatch):
    "A group is read once, but for those in which one reader ends and the next begins; photos are seen once in all"
    seen,read = [],[]
    for k in range(n):
        dls = reading(shards, monkeypatch)
        for dl in dls.loaders: dl.part = k,n
        dls.train.rng.seed(3)
        seen += [y for dl in dls.loaders for b in dl for y in b[1].tolist()]
        read.append(dls.train.dataset.photos)
    assert sorted(seen)==sorted(np.concatenate(read[0].labels))   # 64 and 24 are multiples of the batches
    groups,shard = len(read[0].groups),read[0].shard_of
    assert sum(len(o.read) for o in read) <= groups + 2*(n-1) and set().union(*(o.read for o in read))==set(range(groups))
    train_shards = set(shard[:(read[0].ends<=64).sum()])
    assert sum(len({shard[g] for g in o.read} & train_shards) for o in read) <= len(train_shards)+n-1

def test_memory_is_bounded(shards, monkeypatch):
    largest = json.loads((shards/'shards.json').read_text())['largest']
    dls = reading(shards, monkeypatch, most=3*largest)
    list(dls.train)
    photos = dls.train.dataset.photos
    assert photos.kept.cache_info().currsize==3 and len(photos.groups)>10

@pytest.mark.parametrize('kept', [2,3,4,6,12])
@pytest.mark.parametrize('n', [1,2])
def test_a_group_is_read_once_with_little_memory_too(n, kept, shards, monkeypatch):
    "Fewer readers than photos in a batch: more groups than memory can keep would be read anew for each photo"
    largest = json.loads((shards/'shards.json').read_text())['largest']
    read,seen = [],[]
    for k in range(n):
        dls = reading(shards, monkeypatch, most=kept*largest)
        for dl in dls.loaders: dl.part = k,n
        dls.train.rng.seed(3)
        seen += [y for dl in dls.loaders for b in dl for y in b[1].tolist()]
        read.append(dls.train.dataset.photos)
    groups = len(read[0].groups)
    assert sorted(seen)==sorted(np.concatenate(read[0].labels)) and groups>20
    assert sum(len(o.read) for o in read) <= groups + 2*8 + 2*(n-1)   # a group may be in two stretches

def test_the_order_is_mixed(shards):
    "Another one in each epoch, the same one from the same random state; a batch has photos of many groups"
    dl = cached_data(shards, 32, 32, 8).train
    dl.rng.seed(1)
    one,two = dl.get_idxs(),dl.get_idxs()
    dl.rng.seed(1)
    assert (dl.get_idxs()==one).all() and (one!=two).mean()>.8 and (np.diff(one[:8])!=1).all()
    group = np.searchsorted(dl.dataset.photos.ends, one, 'right').reshape(-1,8)
    assert np.mean([len(set(o)) for o in group])>4

def test_validation_is_told_in_order(shards):
    "`get_preds` gives what the net says of photo i at i, though they are read in another order"
    learn = Learner(cached_data(shards, 32, 32, 8), nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)), F.cross_entropy)
    _,y = learn.get_preds()
    assert y.tolist()==learn.dls.valid.dataset.labels.tolist()

@pytest.mark.parametrize('kind', ['shards','folder'])
def test_what_is_done_is_not_made_again(kind, shards, drawn, monkeypatch):
    "A resumed epoch has the batches that are left; of those before it makes the last one only, for the random states"
    dl = cached_data(dict(shards=shards, folder=drawn)[kind], 32, 32, 8).train
    dl.rng.seed(1)
    whole = list(dl)
    dl.rng.seed(1)
    made,make = [],AheadDL._make
    monkeypatch.setattr(AheadDL, '_make', lambda *args: made.append(1) or make(*args))
    rest = list(_Rest(dl, 5, noop))
    assert len(whole)==8 and len(rest)==3 and len(made)==4
    assert all(torch.equal(a, b) for one,two in zip(whole[5:], rest) for a,b in zip(one, two))
    assert len(list(dl))==8   # the next epoch is a whole one

def test_a_stopped_run_goes_on(shards, tmp_path):
    "In the middle of an epoch, with the photos that are left of it, to the same weights, bit for bit"
    def run(name, *cbs, resume=False):
        set_seed(42)
        dls = cached_data(shards, 32, 32, 8)
        learn = get_learner(dls, get_fcn(dls.c, widths=(8,16)), 'fp32')
        measured_fit(learn, 2, 1e-2, tmp_path/f'{name}.json', resume, cbs=cbs, model='fcn', recipe='small', size=32, seed=42)
        return [o.tolist() for o in learn.model.state_dict().values()]
    with pytest.raises(KeyboardInterrupt): run('parts', CtrlC('after_batch', 1, 13))   # of 16 batches
    assert run('parts', resume=True)==run('whole')

@pytest.mark.faults('a shard cannot be read')
@pytest.mark.parametrize('harm', ['gone','shorter','other'])
def test_a_shard_that_cannot_be_read(harm, shards, tmp_path):
    here = Path(shutil.copytree(shards, tmp_path/'set'))
    file = sorted(here.glob('train-*'))[1]
    data = file.read_bytes()
    file.unlink()
    if harm!='gone': file.write_bytes(data[:-1] if harm=='shorter' else bytes(len(data)))
    with pytest.raises(CourseError) as e: ShardPhotos(here, 32)
    assert one_line(e, file.name, here, '--resume')

def refused(src, dest, *words):
    with pytest.raises(CourseError) as e: make_shards(src, dest)
    assert one_line(e, *words)

def test_what_cannot_become_shards(drawn, shards, tmp_path, monkeypatch):
    refused(tmp_path/'nowhere', tmp_path/'new', 'nowhere', 'no such folder')
    refused('nothing://bucket', tmp_path/'new', 'nothing://bucket', 'correct the address')
    path = photo_set(tmp_path/'photos')
    (path/'train'/'cat'/'0.jpg').write_text('no photo')
    refused(path, tmp_path/'new', '0.jpg', 'not a readable image')
    refused(drawn, Path(shutil.copytree(shards, tmp_path/'there')), 'there', 'already')
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    refused(drawn, tmp_path/'new', 'resnet_course[stream]')
    assert not (tmp_path/'new'/'shards.json').exists()

def bare(t): return t.replace_schema_metadata({})
def both(t, **columns):
    "The splits of a set that is like ours but for these columns"
    for k,o in columns.items(): t = t.set_column(t.schema.get_field_index(k), t.schema.field(k), [o])
    return t,t
def image(t, photos): return both(t, image=pa.array(photos, t.schema.field('image').type))
foreign = dict(one_split=(lambda t: (bare(t),None), 'validation-'), no_classes=(lambda t: both(bare(t)), 'ClassLabel'),
    unlabelled=(lambda t: both(t, label=[-1]*len(t)), 'have no class'),
    more=(lambda t: both(t, label=[99]*len(t)), 'have no class'),
    nulls=(lambda t: both(t, label=pa.nulls(len(t), pa.int64())), 'have no class'),
    paths=(lambda t: image(t, [dict(bytes=None, path=o['path']) for o in t['image'].to_pylist()]), 'the paths of photos'),
    nothing=(lambda t: image(t, [None]*len(t)), 'no photos'), empty=(lambda t: both(t[:0]), 'cannot be read as shards'),
    no_labels=(lambda t: (t,t.select(['image'])), 'cannot be read as shards'))
@pytest.mark.parametrize('kind', foreign)
def test_tables_that_are_no_shards(kind, shards, tmp_path):
    "Of somebody else's, in the layout of the Hub"
    make,words = foreign[kind]
    (tmp_path/'other').mkdir()
    for split,t in zip(('train','validation'), make(pq.read_table(first(shards.glob('train-*'))))):
        if t is not None: pq.write_table(t, tmp_path/'other'/f'{split}-0.parquet')
    refused(tmp_path/'other', tmp_path/'new', 'other', words)
    assert not (tmp_path/'new'/'shards.json').exists()

@pytest.mark.parametrize('cut', [lambda o: b'no parquet', lambda o: b'', lambda o: o[:-9]], ids=['text','empty','cut'])
def test_files_that_are_no_tables(cut, shards, tmp_path):
    data = first(shards.glob('train-*')).read_bytes()
    (tmp_path/'other').mkdir()
    for split,o in dict(train=cut(data), validation=data).items(): (tmp_path/'other'/f'{split}-0.parquet').write_bytes(o)
    refused(tmp_path/'other', tmp_path/'new', 'other', 'cannot be read as shards', 'another folder')

def named_classes(t, names):
    about = json.loads(t.schema.metadata[b'huggingface'])
    about['info']['features']['label']['names'] = names
    return t.replace_schema_metadata({'huggingface':json.dumps(about)})

@pytest.mark.parametrize('change, words', [(lambda names: names[::-1], 'other classes than'), (lambda names: names[:-1], 'other classes than')])
def test_each_file_has_the_same_classes(shards, tmp_path, change, words):
    t = pq.read_table(first(shards.glob('train-*')))
    names = json.loads(t.schema.metadata[b'huggingface'])['info']['features']['label']['names']
    (tmp_path/'other').mkdir()
    pq.write_table(t, tmp_path/'other'/'train-0.parquet')
    pq.write_table(named_classes(t, change(names)), tmp_path/'other'/'validation-0.parquet')
    refused(tmp_path/'other', tmp_path/'new', 'validation-0.parquet', words)

def test_a_set_of_one_class(shards, tmp_path):
    t = pq.read_table(first(shards.glob('train-*')))
    one = named_classes(t.set_column(1, t.schema.field('label'), [[0]*len(t)]), ['bird'])
    (tmp_path/'other').mkdir()
    for split in ('train','validation'): pq.write_table(one, tmp_path/'other'/f'{split}-0.parquet')
    refused(tmp_path/'other', tmp_path/'new', 'only one class (bird)')

def test_several_sets_in_one_place(shards, tmp_path):
    "As those of the Hub that come in several sizes"
    for size in ('160px','320px'): shutil.copytree(shards, tmp_path/'other'/size)
    refused(tmp_path/'other', tmp_path/'new', 'several folders', 'train')
    assert make_shards(tmp_path/'other'/'160px', tmp_path/'one')['counts']==shard_index(shards)['counts']

@pytest.mark.parametrize('name', ['trainval-0.parquet','train_extra-0.parquet','testing-0.parquet'])
def test_only_the_split_itself_is_taken(shards, tmp_path, name):
    shutil.copytree(shards, tmp_path/'other')
    shutil.copy(first(shards.glob('train-*')), tmp_path/'other'/name)
    assert make_shards(tmp_path/'other', tmp_path/'new')['counts']==shard_index(shards)['counts']

@pytest.mark.parametrize('spoil', [lambda o: dict(shardlist=[]), lambda o: o|dict(counts=[1,2]), lambda o: o|dict(splits=dict(train=[['a',1]], val=[])),
                                   lambda o: {k:v for k,v in o.items() if k!='largest'}, lambda o: o|dict(classes='abc')])
def test_an_index_of_somebody_else(shards, tmp_path, spoil):
    shutil.copytree(shards, tmp_path/'set')
    f = tmp_path/'set'/'shards.json'
    f.write_text(json.dumps(spoil(json.loads(f.read_text()))))
    for read in (class_counts, partial(ShardPhotos, presize=32)):
        with pytest.raises(CourseError) as e: read(tmp_path/'set')
        assert one_line(e, 'shards.json', 'make the shards again')

def test_a_place_that_cannot_be_reached(shards, tmp_path, monkeypatch):
    "Whatever library lies between: one that is missing, or an error of its own"
    class Unreachable(Exception): pass
    def glob(self, *args, **kwargs): raise Unreachable('no route to host')
    with monkeypatch.context() as m:
        m.setattr(type(fsspec.filesystem('memory')), 'glob', glob)
        refused('memory://bucket', tmp_path/'new', 'memory://bucket', 'no route to host')
    shutil.copytree(shards, tmp_path/'set')
    f = tmp_path/'set'/'shards.json'
    f.write_text(json.dumps(json.loads(f.read_text())|dict(at='nosuch://bucket')))
    with pytest.raises(CourseError) as e: ShardPhotos(tmp_path/'set', 32)
    assert one_line(e, 'nosuch')

def test_who_reads_no_shards_says_so(shards):
    with pytest.raises(CourseError) as e: photos_by_class(shards)
    assert one_line(e, shards, 'cached_data')
