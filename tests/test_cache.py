"The cache of decoded photos is whole, right and shared, or not used; its loader repeats a run to the last bit"
import errno, io, subprocess, sys, threading, zlib
import pytest, torch
from fastai.vision.all import *
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms.v2 import functional as TF
from resnet_course import loading
from resnet_course.kit import photos
from resnet_course.kit.files import write_whole
from resnet_course.kit.photos import decode_photo, load_photo, Photo, photos_by_class
from resnet_course.kit.runs import fit_seconds, measured_fit
from resnet_course.data import get_data
from resnet_course.training import get_learner
from resnet_course.fcn import get_fcn
from resnet_course.kit.caches import cache_bytes, cache_mark, make_room
from resnet_course.loading import (cached_chapter_data, cached_data, cached_photos, center_squares,
                                   PhotoCache, PhotoCrops, PhotoFiles, random_crops, random_squares)
from conftest import CtrlC, one_line, photo, photo_set

small = dict(presize=24, resize=16, bs=16)
def data_of(path, **kwargs): return cached_data(path, **{**small, 'cache':Path('cache'), **kwargs})
def all_files(path): return [f for split in photos_by_class(path).values() for fs in split.values() for f in fs]
def photos_of(path, presize=24, folder=Path('cache')): return cached_photos(path, all_files(path), presize, folder)
def same(photos, path, presize=24):
    return all(np.array_equal(a, load_photo(f, presize)) for a,f in zip(photos, all_files(path), strict=True))
def noise(file, size=(40,30), mode='RGB', seed=0, **kwargs):
    "Save a picture of noise"
    file.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (size[1],size[0],len(mode)), dtype=np.uint8)
    Image.fromarray(x[...,0] if len(mode)==1 else x, mode=mode).save(file, **kwargs)
    return file
def unread(monkeypatch):
    "From now on nothing is decoded"
    def fail(*args): raise AssertionError('decoded')
    monkeypatch.setattr(photos, 'decode_photo', fail)

@pytest.fixture
def path(tmp_path):
    path = photo_set(tmp_path/'set')
    for i,f in enumerate(all_files(path)): noise(f, (40+i,30), seed=i)
    return path

# --- the cache --------------------------------------------------------------------------------------------------
def test_second_call_decodes_nothing(path, monkeypatch):
    a = photos_of(path)
    assert isinstance(a, PhotoCache) and same(a, path) and len(Path('cache').ls())==1
    assert a[3].shape==(24, round(24*43/30), 3)
    expected = [o.copy() for o in a]
    unread(monkeypatch)
    b = photos_of(path)
    assert a.file==b.file and all(map(np.array_equal, expected, b))

def test_sizes_have_caches_of_their_own(path):
    assert same(photos_of(path, 24), path, 24) and same(photos_of(path, 16), path, 16) and same(photos_of(path), path)
    assert len(Path('cache').ls())==2

def test_folders_of_one_name_have_caches_of_their_own(tmp_path, monkeypatch):
    paths = [photo_set(tmp_path/o/'set') for o in 'ab']
    noise(paths[1]/'train'/'cat'/'0.jpg')
    for p in paths: photos_of(p)
    unread(monkeypatch)
    for p in paths: photos_of(p)

def test_default_folder_is_fastais(path):
    assert photos_of(path, folder=None).file.parent==fastai_path('data')/'resnet-course-cache'

def change(path): noise(path/'train'/'cat'/'1.jpg', seed=99)
def same_size(path):
    "One bit of one pixel, the date kept"
    f = path/'train'/'cat'/'1.png'
    x = np.zeros((30,40,3), np.uint8)
    Image.fromarray(x).save(f, compress_level=0)
    yield
    stat = f.stat(); x[5,5] = 1
    Image.fromarray(x).save(f, compress_level=0)
    assert f.stat().st_size==stat.st_size
    os.utime(f, ns=(stat.st_atime_ns, stat.st_mtime_ns))
def move(path): (path/'train'/'cat'/'1.jpg').rename(path/'train'/'dog'/'99.jpg')
def rename(path):   # the same files in the same order
    for split in ('train','val'): (path/split/'cat').rename(path/split/'ape')
def remove(path): (path/'val'/'dog'/'1.jpg').unlink()
def add(path): noise(path/'val'/'dog'/'new.jpg')

@pytest.mark.parametrize('how', [change, move, rename, remove, add])
def test_a_changed_folder(path, how):
    data_of(path)
    how(path)
    dls = data_of(path)
    assert same(dls.train_ds.photos, path) and len(Path('cache').ls())==1
    files = all_files(path)
    for ds in (dls.train_ds, dls.valid_ds):
        assert [dls.vocab[i] for i in ds.labels]==[files[i].parent.name for i in ds.items]

def test_a_photo_changed_behind_its_date(path):
    steps = same_size(path)
    next(steps); photos_of(path); next(steps, None)
    assert same(photos_of(path), path)

@pytest.mark.parametrize('keep', [0, 7, 20, 1000, -1, -8, -16, -30])
def test_a_truncated_cache_is_built_anew(path, keep):
    a = photos_of(path)
    whole = a.file.read_bytes()
    a.file.unlink(); a.file.write_bytes(whole[:keep])
    with pytest.raises(ValueError): PhotoCache(a.file, {})
    assert same(photos_of(path), path) and a.file.read_bytes()==whole

def test_a_cache_with_a_hole(path):
    "The end is there, and some pixels are not"
    a = photos_of(path)
    whole = a.file.read_bytes()
    a.file.unlink(); a.file.write_bytes(whole[100:])
    assert same(photos_of(path), path)

def test_a_foreign_cache_is_built_anew(path, tmp_path):
    other = photo_set(tmp_path/'other')
    a,b = photos_of(path),photos_of(other)
    a.file.unlink(); shutil.copy(b.file, a.file)
    assert same(photos_of(path), path)
    a.file.unlink(); a.file.write_bytes(b'x'*100_000)
    assert same(photos_of(path), path)

def test_a_cache_of_another_format(path):
    a = photos_of(path)
    whole = a.file.read_bytes()
    a.file.unlink(); a.file.write_bytes(whole[:-1]+b'0')
    with pytest.raises(ValueError): PhotoCache(a.file, json.loads(whole[a.ends[-1]:-16])['about'])
    assert same(photos_of(path), path)

def test_other_files_of_the_folder(path):
    files = all_files(path)
    for o in (files, files[::-1], files[:5]):
        for x,f in zip(cached_photos(path, o, 24, 'cache'), o, strict=True): assert np.array_equal(x, load_photo(f, 24))

script = """
import os, sys, time
from pathlib import Path
from resnet_course import loading
from resnet_course.kit import photos
from resnet_course.kit.photos import photos_by_class
path,mode = Path(sys.argv[1]),sys.argv[2]
load = loading.load_photo
def slow(f, presize):
    time.sleep(.05)
    Path(f'{mode}-{os.getpid()}').touch()
    if mode=='hang' and f.name=='3.jpg': print('hangs', flush=True); time.sleep(100)
    return load(f, presize)
loading.load_photo = slow
files = [f for s in photos_by_class(path).values() for fs in s.values() for f in fs]
a = loading.cached_photos(path, files, 24, Path('cache'))
assert isinstance(a, loading.PhotoCache) and all((x==load(f, 24)).all() for x,f in zip(a, files, strict=True))
"""
def builder(path, mode):
    return subprocess.Popen([sys.executable, '-c', script, path, mode], stdout=subprocess.PIPE, text=True)

def test_two_builders_at_once(path):
    "One decodes, the other waits for its cache"
    for p in [builder(path, 'whole') for _ in range(2)]: p.communicate(); assert p.returncode==0
    assert len(list(Path().glob('whole-*')))==1
    assert len(Path('cache').ls())==1 and same(photos_of(path), path)

def test_two_threads_build_once(path, monkeypatch):
    built,build = [],loading.build_cache
    def counted(*args): built.append(1); time.sleep(.1); build(*args)
    monkeypatch.setattr(loading, 'build_cache', counted)
    with ThreadPoolExecutor(2) as ex: res = list(ex.map(lambda _: same(photos_of(path), path), range(2)))
    assert res==[True,True] and built==[1]

def test_a_killed_builder(path):
    p = builder(path, 'hang')
    assert any('hangs' in o for o in p.stdout)   # it ends where the builder does
    p.kill(); p.wait()
    left, = Path('cache').ls()
    assert left.name.startswith('.')
    assert same(photos_of(path), path) and left.exists()   # it may be another builder's, who is at work
    os.utime(left, (1,1))
    photos_of(path, 16)
    assert not left.exists() and len(Path('cache').ls())==2

def test_broken_photo(path):
    bad = path/'train'/'dog'/'bad.jpg'
    bad.write_bytes(noise(path/'a.jpg', (200,200)).read_bytes()[:700])
    for cache in (Path('cache'), False):
        with pytest.raises(Exception) as e: list(data_of(path, cache=cache, bs=9).train)
        assert one_line(e, bad, 'not a readable image', 'doctor --data')
    assert not Path('cache').ls()

# --- no room ----------------------------------------------------------------------------------------------------
def falls_back(path, capsys, *words):
    a = photos_of(path)
    out = capsys.readouterr().out
    line, = [o for o in out.splitlines() if 'No cache' in o]
    assert isinstance(a, PhotoFiles) and same(a, path) and all(w in line for w in ('cache','slower',*words))
    assert not [o for o in (Path('cache').ls() if Path('cache').is_dir() else []) if o.is_file()]

def test_little_room_is_seen_first(path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1000))
    monkeypatch.setattr(loading, 'build_cache', lambda *_: 1/0)
    falls_back(path, capsys, 'GB are free')

def test_the_disk_fills_up(path, capsys, monkeypatch):
    class Full:
        def __init__(self, f): self.f,self.n = f,0
        def __getattr__(self, k): return getattr(self.f, k)
        def write(self, b):
            self.n += len(b)
            if self.n>20_000: raise OSError(errno.ENOSPC, 'No space left on device')
            return self.f.write(b)
    @contextmanager
    def write_whole(*args):
        with real(*args) as f: yield Full(f)
    real = loading.write_whole
    monkeypatch.setattr(loading, 'write_whole', write_whole)
    falls_back(path, capsys, 'No space left on device')

def test_read_only_folder(path, capsys, monkeypatch):
    def denied(*_): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(loading, 'write_whole', denied)
    falls_back(path, capsys, 'Permission denied')
def test_folder_that_cannot_be_made(path, capsys):
    Path('cache').touch()
    falls_back(path, capsys, 'exists')

def test_the_fallback_gives_the_same_batches(path, drawn):
    for p in (path, drawn):
        batches = []
        for cache in (Path('cache'), False):
            set_seed(42)
            batches.append([b for dl in data_of(p, cache=cache, bs=3).loaders for b in dl])
        assert len(batches[0])>2
        for a,b in zip(*batches, strict=True): assert (a[0]==b[0]).all() and (a[1]==b[1]).all()

def test_a_large_cache_needs_little_memory(tmp_path, monkeypatch):
    "It is mapped into memory, and read photo by photo, once"
    n,h,taken = 25,11,[]
    class Reads(io.BufferedReader):
        def read(self, n=-1):
            taken.append(n)
            return super().read(n)
    monkeypatch.setattr(loading, 'open_file', lambda file: Reads(io.FileIO(file)))
    index = json.dumps(dict(about={}, sizes=[(h,h)]*n, sums=[zlib.crc32(bytes(h*h*3))]*n)).encode()
    with open(tmp_path/'a', 'wb') as f:
        f.seek(n*h*h*3)
        f.write(index + len(index).to_bytes(8, 'little') + cache_mark)
    a = PhotoCache(tmp_path/'a', {})
    assert isinstance(a.pixels.base, np.memmap) and taken==[h*h*3]*n
    assert a[n-1].shape==(h,h,3) and a[n-1].sum()==0 and not a[0].flags.writeable

def aged(file, days): os.utime(file, (time.time()-86400*days,)*2)
def kept(): return sorted(o.name for o in Path('cache').ls())

def test_what_the_caches_hold(path):
    assert cache_bytes(Path('cache'))==cache_bytes('cache')==0
    files = [photos_of(path, size).file for size in (24,16)]
    (Path('cache')/'set-24-01234567.photos').write_bytes(b'of somebody else')
    assert cache_bytes('cache')==sum(f.stat().st_size for f in files)
    assert cache_bytes()==cache_bytes(fastai_path('data')/'resnet-course-cache')

def test_caches_that_nobody_uses_go(path):
    old,used,new = (photos_of(path, size).file for size in (24,16,20))
    mine = [Path('cache')/o for o in ('my.photos', 'set-24-01234567.photos', 'a.jpg')]
    for o in mine: o.write_bytes(b'x'*100)
    for o in (old,used,*mine): aged(o, 31)
    aged(new, 29)
    assert isinstance(photos_of(path, 16), PhotoCache)   # a use counts, and removes nothing
    assert old.exists()
    photos_of(path, 12)
    assert not old.exists() and used.exists() and new.exists() and all(o.exists() for o in mine)

def test_the_longest_unused_make_room(path, monkeypatch):
    a,b,c = (photos_of(path, size).file for size in (24,16,20))
    for f,days in ((b,3),(c,2),(a,1)): aged(f, days)
    size,disk = {f:f.stat().st_size for f in (a,b,c)},4*12**2*16 - 1
    def usage(_): return types.SimpleNamespace(free=disk + sum(size[f] for f in size if not f.exists()))
    monkeypatch.setattr(shutil, 'disk_usage', usage)
    assert isinstance(photos_of(path, 12), PhotoCache) and not b.exists() and c.exists() and a.exists()

def test_caches_stay_where_they_would_not_make_room(path, monkeypatch, capsys):
    a = photos_of(path, 24).file
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=0))
    assert isinstance(photos_of(path, 1000), PhotoFiles) and a.exists() and 'GB are free' in capsys.readouterr().out

def test_a_cache_whose_date_cannot_be_set_is_used(path, monkeypatch):
    a = photos_of(path)
    def denied(*args, **kwargs): raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'utime', denied)
    unread(monkeypatch)
    assert photos_of(path).file==a.file

def test_writers_with_one_number_do_not_meet(tmp_path, monkeypatch):
    "Containers number their processes alike, and threads share a number"
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    f = tmp_path/'file'
    for mode,one,two in (('w','one'*9,'two'), ('wb',b'one'*9,b'two')):
        with write_whole(f, mode) as o:
            o.write(one)
            with write_whole(f, mode) as other: other.write(two)
            assert f.read_bytes()==b'two'
        assert f.read_bytes()==b'one'*9 and os.listdir(tmp_path)==['file']

@pytest.mark.skipif(sys.platform!='linux', reason='names there are text')
@pytest.mark.parametrize('name', [b'caf\xe9', b'.hid.photos-1', b'n'*250, 'ü'.encode()*120, b'a\nb'])
def test_a_cache_for_a_folder_of_any_name(path, name):
    path = path.rename(os.fsdecode(os.fsencode(path.parent)+b'/'+name))
    photo(path/'train'/'cat'/os.fsdecode(name+b'.jpg'))
    a = photos_of(path)
    assert isinstance(a, PhotoCache) and same(a, path) and cache_bytes('cache')==a.file.stat().st_size
    aged(a.file, 1)
    photos_of(path, 16)   # another builder sweeps, and leaves it
    assert a.file.exists() and photos_of(path).file==a.file

def test_a_sweeper_that_is_second(path, monkeypatch):
    photos_of(path)
    left = [Path('cache')/f'.set-24-01234567.photos-{i:016x}.tmp' for i in (1,2)]
    for o in left: o.write_bytes(b'x'); aged(o, 1)
    def gone(self, **kwargs): real(self, **kwargs); raise FileNotFoundError(2, 'No such file', str(self))
    real = Path.unlink
    monkeypatch.setattr(Path, 'unlink', gone)
    make_room(Path('cache'), 0)
    assert not any(o.exists() for o in left)

def test_small_photos_need_little_room(path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=100_000))
    assert isinstance(photos_of(path, 4000), PhotoCache)   # they stay as they are: 16 of 30 by 40 pixels and a few more

@pytest.mark.parametrize('index', [b'{}', b'[]', b'3', b'{"about": 1}', b'null', b'"about"'])
def test_a_cache_whose_index_is_odd_is_built_anew(path, index):
    f = photos_of(path).file
    f.write_bytes(b'\0'*99 + index + len(index).to_bytes(8, 'little') + cache_mark)
    assert isinstance(a:=photos_of(path), PhotoCache) and same(a, path)

# --- odd images -------------------------------------------------------------------------------------------------
def exif(f, orientation):
    e = Image.Exif(); e[0x112] = orientation
    return noise(f, exif=e)
def palette(f): Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10,12)).convert('P').quantize(7).save(f)
def sixteen(f): Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30,40)).save(f)
odd = {'grey.jpg':partial(noise, mode='L'), 'grey.png':partial(noise, mode='L'), 'rgba.png':partial(noise, mode='RGBA'),
    'cmyk.jpg':partial(noise, mode='CMYK'), 'cmyk.tif':partial(noise, mode='CMYK'),
    'palette.png':palette, 'a.gif':palette, '16.png':sixteen, '16.tif':sixteen,
    'one.png':partial(noise, size=(1,1)), 'one.jpg':partial(noise, size=(1,1)),
    'long.jpg':partial(noise, size=(4000,3)), 'high.png':partial(noise, size=(1,3000)), 'plain.jpg':noise,
    'progressive.jpg':partial(noise, progressive=True), 'a.webp':noise, 'png named.jpg':partial(noise, format='PNG'),
    'jpg named.png':partial(noise, format='JPEG'), '猫 ümläut.jpg':noise,
    **{f'exif{i}.jpg':partial(exif, orientation=i) for i in range(1,9)}}

@pytest.mark.parametrize('name', odd)
def test_decoded_as_photo_does(tmp_path, name):
    odd[name](tmp_path/name)
    x,expected = decode_photo(tmp_path/name),np.array(Photo.create(tmp_path/name))
    assert x.dtype==np.uint8 and x.flags.c_contiguous and np.array_equal(x, expected)

def test_plain_jpegs_go_to_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, 'read_photo', lambda _: 1/0)
    for o in ('plain.jpg','grey.jpg','exif6.jpg'): odd[o](tmp_path/o); decode_photo(tmp_path/o)

def test_without_torchvisions_decoder(tmp_path, monkeypatch):
    "It may be gone some day"
    monkeypatch.setitem(sys.modules, 'torchvision.io', types.ModuleType('torchvision.io'))
    test_decoded_as_photo_does(tmp_path, 'plain.jpg')

def test_odd_images_train(tmp_path):
    path = photo_set(tmp_path/'mit Leerzeichen und Ümläut', ('un chat','狗'), ('un chat','狗'))
    for name,make in odd.items(): make(path/'train'/'un chat'/name); make(path/'val'/'狗'/name)
    for f in (data_of, partial(cached_chapter_data, cache=Path('cache'), **small)):
        dls = f(path)
        assert same(dls.train_ds.photos, path)
        for dl in dls.loaders:
            for xb,_ in dl: assert xb.shape[1:]==(3,16,16) and xb.isfinite().all()

def test_presize(tmp_path):
    "The shorter side, close to what Pillow makes of it, and never enlarged"
    f = noise(tmp_path/'a.png', (90,60))
    x = load_photo(f, 24)
    assert x.shape==(24,36,3)
    assert abs(x - np.array(Photo.create(f).resize((36,24), Image.BILINEAR)).astype(int)).max()<=3
    assert np.array_equal(load_photo(f, 61), np.array(Photo.create(f)))

# --- crops ------------------------------------------------------------------------------------------------------
def measures(boxes, h, w):
    t,l,ch,cw = np.array(boxes).T
    return dict(area=ch*cw/(h*w), ratio=cw/ch, top=t/(h-ch+1), left=l/(w-cw+1), center=(t+ch/2)/h + 2*(l+cw/2)/w)

@pytest.mark.parametrize('scale', [.08,.35])
@pytest.mark.parametrize('h, w', [(160,213), (213,160), (160,160), (40,100), (30,300), (7,9)])
def test_crops_have_fastais_chances(h, w, scale):
    n,tfm,im = 3000,RandomResizedCrop(128, min_scale=scale),Image.new('L', (w,h))
    random.seed(1)
    boxes = []
    for _ in range(n): tfm.before_call(im, 0); boxes.append((*tfm.tl[::-1], *tfm.cp_size[::-1]))
    ours = random_crops(np.full(n,h), np.full(n,w), np.random.default_rng(1), scale)
    assert (ours[:,:2]>=0).all() and (ours[:,2:]>0).all() and (ours[:,:2]+ours[:,2:]<=(h,w)).all()
    a,b = measures(ours, h, w),measures(boxes, h, w)
    p = {k:ks_2samp(a[k], b[k]).pvalue for k in a}
    assert min(p.values())>.001, p

@pytest.mark.parametrize('h, w', [(160,213), (213,160), (160,160)])
def test_squares_have_fastais_chances(h, w, monkeypatch):
    n,boxes = 3000,[]
    monkeypatch.setattr(Image.Image, 'crop_pad', lambda x,sz,tl,**_: boxes.append((*tl[::-1], *sz[::-1])) or x)
    random.seed(1)
    tfm,im = Resize(32),Image.new('L', (w,h))
    for _ in range(n): tfm(im, split_idx=0)
    ours,theirs = random_squares(np.full(n,h), np.full(n,w), np.random.default_rng(1)),np.array(boxes)
    assert (ours[:,2:]==min(h,w)).all() and (theirs[:,2:]==min(h,w)).all()
    assert all(ks_2samp(ours[:,i], theirs[:,i]).pvalue>.001 for i in (0,1))
    tfm(im, split_idx=1)   # validation
    assert tuple(center_squares(np.array([h]), np.array([w]))[0])==boxes[-1]

def test_a_square_has_a_pixel():
    h,w = np.ones((2,3), int)
    for share in (.1,.4,1.): assert center_squares(h, w, share=share).tolist()==[[0,0,1,1]]*3

def test_tiny_photos_have_crops():
    assert (random_crops(np.ones(500,int), np.ones(500,int), np.random.default_rng(0), .01)==[0,0,1,1]).all()

def test_a_crop_is_cut_where_it_says(path):
    "And mirrored after that"
    photos = photos_of(path)
    box = np.array([[2,3,15,20]])
    for flip in (0.,1.):
        ds = PhotoCrops(photos, range(4), [0]*4, 'ab', 16, lambda h,w,rng: box, flip, normalize=False)
        x = torch.from_numpy(np.array(photos[1])).permute(2,0,1)
        x = TF.resized_crop(x, 2, 3, 15, 20, [16,16], antialias=True)
        assert abs(ds.batch([1], np.random.default_rng(0))[0][0].int() - (x.flip(2) if flip else x).int()).max()<=1

def test_each_photo_has_a_crop_of_its_own(path):
    for f in (path/'train').rglob('*.jpg'): noise(f, seed=5)
    ds = data_of(path).train_ds
    xb,_ = ds.batch(range(8), np.random.default_rng(0))
    assert len({x.numpy().tobytes() for x in xb})==8

def test_half_are_mirrored(path):
    def dark_left(**kwargs):
        ds = data_of(path, crops=center_squares, **kwargs).train_ds
        xb,_ = ds.batch([0]*400, np.random.default_rng(0))
        return (xb==xb[0]).flatten(1).all(1).float().mean().item()
    assert .4<dark_left()<.6 and dark_left(flip=0)==1

def test_validation_is_the_middle(path):
    "As computed by torchvision from the photos"
    dls = data_of(path)
    xb = torch.cat([xb for xb,_ in dls.valid])
    for x,f in zip(xb, all_files(path)[8:], strict=True):
        y = torch.from_numpy(np.array(Photo.create(f))).permute(2,0,1)
        k = 24/min(y.shape[1:])
        y = TF.resize(y, [round(o*k) for o in y.shape[1:]], antialias=True)
        y = TF.resized_crop(y, 0, (y.shape[2]-24)//2, 24, 24, [16,16], antialias=True)
        y = TF.normalize(y/255, *imagenet_stats)
        assert (x-y).abs().max()<1e-4

# --- loaders ----------------------------------------------------------------------------------------------------
def test_like_get_data(drawn):
    a,b = data_of(drawn),get_data(drawn, **small)
    assert list(a.vocab)==list(b.vocab) and a.c==b.c==10 and a.path==b.path and a.device==b.device
    for bs in (16,10):   # the second leaves a rest
        c,d = data_of(drawn, bs=bs),get_data(drawn, **small|dict(bs=bs))
        assert [(len(dl), dl.n, dl.bs) for dl in c.loaders]==[(len(dl), dl.n, dl.bs) for dl in d.loaders]
    assert torch.cat([y for _,y in a.valid]).tolist()==torch.cat([y for _,y in b.valid]).tolist()
    (xa,ya),(xb,yb) = a.one_batch(),b.one_batch()
    assert (xa.shape,xa.dtype,ya.shape,ya.dtype)==(xb.shape,xb.dtype,yb.shape,yb.dtype)
    assert xa.is_contiguous(memory_format=torch.channels_last)

def test_chapters_transforms(drawn):
    "Validation batches close to those of `get_data`, training batches through the same transforms"
    a,b = cached_chapter_data(drawn, cache=Path('cache'), **small),get_data(drawn, **small)
    xa,xb = (torch.cat([x for x,_ in o.valid]) for o in (a,b))
    assert (xa-xb).abs().mean()<.02
    names = [[type(f).__name__ for f in o.train.after_batch.fs] for o in (a,b)]
    assert names[0]==names[1] and 'Flip' in names[0]
    x,_ = a.train_ds.batch(range(9), np.random.default_rng(0))
    whole = PhotoCrops(a.train_ds.photos, a.train_ds.items, a.train_ds.labels, a.vocab, 24, normalize=False)
    assert x.dtype==torch.uint8 and (x==whole.batch(range(9), np.random.default_rng(0))[0]).all()   # squares, as drawn

def test_an_epoch_has_each_photo_once(path):
    for f in all_files(path): noise(f, (24,24), seed=zlib.crc32(str(f).encode()), subsampling=0)
    for ahead in (0,1,2,7):
        dls = data_of(path, crops=center_squares, flip=0, bs=2, ahead=ahead)
        keys = [x.numpy().tobytes() for xb,_ in dls.train for x in xb]
        assert len(keys)==len(set(keys))==8
        order = [x.numpy().tobytes() for xb,_ in dls.train for x in xb]
        assert sorted(order)==sorted(keys) and order!=keys

def test_batches_depend_on_the_loaders_generator_alone(drawn):
    "Not on the global ones, on how many are made ahead, nor on which thread is first"
    def epochs(ahead, noisy=False):
        set_seed(42)
        dl = data_of(drawn, ahead=ahead).train
        batch = dl.dataset.batch
        def late(*args): time.sleep(random.random()*.03); torch.rand(1); np.random.rand(); return batch(*args)
        if noisy: dl.dataset.batch = late
        return [torch.cat([b[0] for b in dl]) for _ in range(2)]
    a,b = epochs(0)
    assert (a!=b).any()
    for other in (epochs(0), epochs(2), epochs(5, noisy=True)): assert (a==other[0]).all() and (b==other[1]).all()

def test_epochs_have_other_crops(path):
    dl = data_of(path).train.new(shuffle=False)
    a,b = dl.one_batch(),dl.one_batch()
    assert (a[1]==b[1]).all() and all((x!=y).any() for x,y in zip(a[0], b[0]))

def test_batches_of_an_epoch_have_other_crops(path):
    for f in (path/'train').rglob('*.jpg'): noise(f, seed=5)
    xs = [xb for xb,_ in data_of(path, bs=2).train]
    assert len({x.numpy().tobytes() for x in xs})==len(xs)==4

def test_batches_are_made_meanwhile(drawn, monkeypatch):
    "Whoever has the first batch has started `ahead` more, no fewer and no more, all of them in threads"
    for ahead in (1,3):
        dl = data_of(drawn, bs=8, ahead=ahead).train
        started,threads,start,batch = [],[],loading._start,dl.dataset.batch
        def starts(*args): started.append(start(*args)); return started[-1]
        def noted(*args): threads.append(threading.current_thread()); return batch(*args)
        dl.dataset.batch = noted
        with monkeypatch.context() as m:
            m.setattr(loading, '_start', starts)
            it = iter(dl)
            next(it)
            assert len(started)==1+ahead
            for o in started: o.result()
            assert len(threads)==1+ahead and threading.main_thread() not in threads
            assert len(list(it))==7

def gone(before):
    "True if the threads beyond those of `before` end"
    left = set(threading.enumerate())-before
    for o in left: o.join(60)   # no longer than it takes
    return not any(o.is_alive() for o in left)

def tiny_cached_learner(path, **kwargs):
    set_seed(42)
    dls = data_of(path)
    *body,head = get_fcn(dls.c, widths=(8,16))
    return get_learner(dls, nn.Sequential(*body, nn.Dropout(.2), head), 'fp32', **kwargs)

class Raise(Callback):
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.train_iter==2: raise self.error

@pytest.mark.parametrize('how', ['one_batch','break','cancel','interrupt','fit_seconds','whole'])
def test_no_thread_is_left(drawn, how):
    learn,held = tiny_cached_learner(drawn),[]
    before = set(threading.enumerate())
    if how=='one_batch': learn.dls.one_batch()
    if how=='break':
        held.append(iter(learn.dls.train))   # nobody closes it
        next(held[0])
    if how=='cancel': learn.fit(1, cbs=Raise(CancelFitException()))
    if how=='interrupt':
        with pytest.raises(KeyboardInterrupt) as e: learn.fit(1, cbs=Raise(KeyboardInterrupt()))
        held.append(e)
    if how=='fit_seconds': fit_seconds(learn, 1)
    if how=='whole': learn.fit(1)
    assert gone(before)

def test_an_error_in_the_thread_reaches_the_caller(path):
    before = set(threading.enumerate())
    dls = data_of(path, cache=False, bs=2)
    bad = path/'train'/'cat'/'2.jpg'
    bad.write_text('no photo')
    with pytest.raises(Exception) as e: list(dls.train)
    assert one_line(e, bad, 'not a readable image') and gone(before)

# --- a run that is stopped --------------------------------------------------------------------------------------
def run(path, *cbs, resume=False):
    learn = tiny_cached_learner(path, cbs=cbs)
    rec = measured_fit(learn, 3, 1e-2, Path('out/a-s42.json'), resume, overwrite=not resume, model='fcn', recipe='small', size=16, seed=42)
    history = [{k:v for k,v in o.items() if k!='seconds'} for o in rec['history']]
    return history, list(map(float, learn.recorder.losses)), {k:v.tolist() for k,v in learn.model.state_dict().items()}

@pytest.mark.parametrize('at, batch', [(0,0), (1,6), (1,7), (2,9)])
def test_stopped_and_resumed(drawn, at, batch):
    whole = run(drawn)
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch', at, batch))
    assert run(drawn, resume=True)==whole

def test_a_home_that_cannot_be_written(drawn, monkeypatch, capsys):
    def fail(_): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('resnet_course.kit.caches.fastai_folder', fail)
    assert isinstance(cached_photos(drawn, get_image_files(drawn), 24), PhotoFiles)
    assert capsys.readouterr().out.startswith('No cache in FASTAI_HOME (Permission denied): photos are decoded')

def test_export(drawn):
    learn = tiny_cached_learner(drawn)
    learn.export('a.pkl')
    assert Path('a.pkl').stat().st_size<200_000 and load_learner('a.pkl').dls.vocab==learn.dls.vocab

def test_show(drawn):
    dls = data_of(drawn)
    dls.show_batch(max_n=4)
    titles = {ax.get_title() for ax in plt.gcf().axes}
    assert titles and titles<=set(dls.vocab)
    x = dls.train.decode(dls.one_batch())[0]
    assert 0<=x.min()+1e-4 and x.max()<=1+1e-4 and x.max()>.6
    plt.close('all')

@pytest.mark.parametrize('train, val, words', [((), (), 'no images'), (('a',), ('a',), 'only one class'),
                                               (('a','b'), ('a','c'), 'no folder in train')])
def test_folders(tmp_path, train, val, words):
    path = photo_set(tmp_path/'set', train, val); path.mkdir(exist_ok=True)
    with pytest.raises(Exception) as e: data_of(path)
    assert one_line(e, path, words)

def test_a_small_set_is_one_batch(path):
    dls = data_of(path, bs=100)
    assert len(dls.train)==1 and len(dls.one_batch()[0])==8

# --- a cache that is not as it was written ----------------------------------------------------------------------
@pytest.mark.faults('a cache is spoiled')
@pytest.mark.parametrize('seed', range(20))
def test_a_spoiled_cache_is_built_anew(path, seed):
    "Bits flipped, bytes gone or added, anywhere"
    rng,a = random.Random(seed),photos_of(path)
    whole = a.file.read_bytes()
    at = rng.randrange(len(whole)) if seed%2 else rng.randrange(len(whole)-16-8*len(a), len(whole))   # in the index, too
    some = [whole[:at]+bytes([whole[at]^1<<rng.randrange(8)])+whole[at+1:], whole[:at]+whole[at+3:], whole[:at]+b'99'+whole[at:]]
    a.file.unlink()
    a.file.write_bytes(some[seed%3])
    assert same(b:=photos_of(path), path) and isinstance(b, PhotoCache) and b.file.read_bytes()==whole

@pytest.mark.parametrize('changes', [dict(sizes=[]), dict(sizes=[[-1,-1]]*16), dict(sizes=[[2**40,2**40]]*16), dict(sizes=[[10**30,3]]*16),
    dict(sizes=[[1,1]]), dict(sizes='16'), dict(sizes={}), dict(sums=None), dict(sums=[]), dict(sums={'a':1}), dict(sizes=[[24.,32.]]*16)], ids=str)
def test_an_odd_index(path, changes):
    a = photos_of(path)
    whole = a.file.read_bytes()
    index = json.dumps(json.loads(whole[a.ends[-1]:-16]) | changes).encode()
    a.file.unlink()
    a.file.write_bytes(whole[:a.ends[-1]] + index + len(index).to_bytes(8, 'little') + cache_mark)
    assert same(b:=photos_of(path), path) and b.file.read_bytes()==whole

@pytest.mark.skipif(not hasattr(os, 'getuid'), reason='files have no owners there')
def test_a_cache_of_another_owner_is_refused(path, monkeypatch, capsys):
    a = photos_of(path)
    before = a.file.read_bytes()
    me = os.stat(a.file).st_uid
    monkeypatch.setattr(os, 'getuid', lambda: me+1)
    real = Path.stat
    def stat(self, **kwargs):
        s = [*real(self, **kwargs)]
        s[4] = me+2   # whose it is
        return os.stat_result(s)
    monkeypatch.setattr(Path, 'stat', stat)
    assert isinstance(photos_of(path), PhotoFiles) and a.file.read_bytes()==before
    out = capsys.readouterr().out
    assert str(a.file) in out and 'another owner' in out and out.count('\n')==1

@pytest.mark.skipif(os.name=='nt', reason='has other kinds')
@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda f: f.symlink_to('/dev/zero')], ids=['pipe','folder','device'])
def test_what_is_no_file_is_refused(path, make, capsys):
    a = photos_of(path)
    a.file.unlink()
    capsys.readouterr()
    make(a.file)
    b = photos_of(path)
    assert isinstance(b, PhotoFiles) and same(b, path) and not a.file.is_file() and cache_bytes('cache')==0
    out = capsys.readouterr().out
    assert str(a.file) in out and 'no file' in out and out.count('\n')==1
