"Folders and files that cannot be trained on are told in one line; odd images that can be are read right"
import errno, gzip, os, pickle, shutil, subprocess, sys
import numpy as np, pytest
from urllib.error import URLError
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile
from fastai.vision.all import *
from PIL import Image
from resnet_course import data
from resnet_course.kit import download
from resnet_course.kit.files import CourseError
from resnet_course.kit.sample import make_sample
from resnet_course.kit.photos import broken_images, data_name, fingerprint, Photo, photos_by_class
from resnet_course.kit.arrays import load_arrays
from resnet_course.data import course_path, get_data, run_settings
from resnet_course.training import get_learner
from resnet_course.fcn import get_fcn
from resnet_course.keras_net import signs_dls
from conftest import mnist_files, one_line, photo, photo_set, tiny_learner

def get(path, bs=4): return get_data(path, presize=32, resize=32, bs=bs)

@pytest.mark.parametrize('end', ['\n','\r\n','\r','\x85','\u2028','\u2029','\v','\f','\x1c'])
def test_a_line_break_in_a_name_cuts_nothing(tmp_path, end):
    for text in (f'a{end}b: no such folder', f'folder{end}: there is none', f'{end}a', f'a{end}'):
        with pytest.raises(Exception) as e: raise CourseError(text)
        assert one_line(e, *text.split(end)) and len(str(e.value).splitlines())==1
        for o in (pickle.loads(pickle.dumps(e.value)), CourseError(str(e.value))): assert str(o)==str(e.value)
    with pytest.raises(Exception) as e: course_path(tmp_path/f'my{end}photos')
    assert one_line(e, tmp_path, 'my', 'photos', 'no such folder')

def test_a_name_that_reads_like_an_error():
    for text in ('CourseError: a.jpg', 'a Traceback (most recent call last): b', 'x.CourseError: y'):
        assert str(CourseError(text))==text

# --- folders ----------------------------------------------------------------------------------------------------
def test_no_such_folder(tmp_path):
    for f in (get, course_path):
        with pytest.raises(Exception) as e: f(tmp_path/'none')
        assert one_line(e, tmp_path/'none', 'no such folder', 'train/<class>/')

@pytest.mark.parametrize('train, val, words', [
    ((), (), ('no images', 'train/<class>/')),
    (('cat',), ('cat',), ('train', 'only one class (cat)', 'two or more')),
    (('cat','dog'), (), ('no images in val/', 'the layout is')),
    ((), ('cat','dog'), ('no images in train/', 'the layout is')),
    (('cat','dog'), ('cat','dog','emu','fox'), ('val', 'emu, fox', 'no folder in train', 'remove these'))])
def test_folders(tmp_path, train, val, words):
    path = photo_set(tmp_path/'set', train, val)
    path.mkdir(exist_ok=True)
    with pytest.raises(Exception) as e: get(path)
    assert one_line(e, path, *words)

def test_folders_with_other_things_in_them(tmp_path):
    path = photo_set(tmp_path/'set')
    for o in ('notes.txt', 'train/notes.txt', 'train/cat/Thumbs.db', 'train/empty/notes.txt'):
        (path/o).parent.mkdir(exist_ok=True)
        (path/o).write_text('x')
    photo(path/'loose.jpg'); photo(path/'train'/'loose.jpg')
    dls = get(path)
    assert (len(dls.train_ds), len(dls.valid_ds), list(dls.vocab))==(8, 8, ['cat','dog'])

def test_photos_outside_of_class_folders(tmp_path):
    for i in range(4): photo(tmp_path/'train'/f'{i}.jpg'); photo(tmp_path/'val'/f'{i}.jpg')
    with pytest.raises(Exception) as e: get(tmp_path)
    assert one_line(e, tmp_path, 'no images in train/<class>/')

def test_a_class_without_validation_photos_is_fine(tmp_path):
    assert get(photo_set(tmp_path/'set', ('cat','dog','emu'))).c==3

def test_batch_larger_than_the_set(tmp_path):
    path = photo_set(tmp_path/'set')
    with pytest.raises(Exception) as e: get(path, bs=9)
    assert one_line(e, path, 'batch of 9', '8 photos', 'use bs=8')
    assert len(get(path, bs=8).train)==1

# --- files that are no images -----------------------------------------------------------------------------------
def truncated(f): photo(f, size=(200,200)); f.write_bytes(f.read_bytes()[:700])
def text(f): f.write_text('I am no photo')
def empty(f): f.write_bytes(b'')
def png_with_a_bad_checksum(f): photo(f, format='PNG'); x = bytearray(f.read_bytes()); x[50] ^= 255; f.write_bytes(x)
breaks = dict(truncated=truncated, text=text, empty=empty, checksum=png_with_a_bad_checksum)

@pytest.mark.parametrize('kind, workers', [*((o,0) for o in breaks), ('truncated',2)])
def test_a_broken_file_is_named(tmp_path, monkeypatch, kind, workers):
    monkeypatch.setattr(data, 'n_workers', lambda *_: workers)
    path = photo_set(tmp_path/'set')
    bad = path/'train'/'dog'/'bad.jpg'
    breaks[kind](bad)
    dls = get(path, bs=9)
    with pytest.raises(Exception) as e: list(dls.train)   # not `one_batch`, which uses no workers
    assert one_line(e, bad, 'not a readable image', 'repair or remove it', 'doctor --data')

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Exception) as e: Photo.create(tmp_path/'gone.jpg')
    assert one_line(e, tmp_path/'gone.jpg')

def test_broken_images_lists_them_all(tmp_path):
    path = photo_set(tmp_path/'set')
    for i,f in enumerate(breaks.values()): f(path/('train','val')[i%2]/'cat'/f'x{i}.jpg')
    found = broken_images(path)
    assert [f.name for f,_ in found]==['x0.jpg','x2.jpg','x1.jpg','x3.jpg']
    assert all(f.is_absolute() and r and '\n' not in r for f,r in found)
    assert broken_images(photo_set(tmp_path/'whole'))==[]

# --- images of other kinds --------------------------------------------------------------------------------------
def at(im, x, y): return np.asarray(im)[y,x].tolist()

@pytest.mark.parametrize('mode, color, suffix, rgb', [
    ('RGB', (200,60,20), 'png', [200,60,20]), ('L', 77, 'png', [77]*3), ('L', 77, 'jpg', [77]*3),
    ('1', 1, 'png', [255]*3),
    ('RGBA', (200,60,20,255), 'png', [200,60,20]), ('LA', (77,255), 'png', [77]*3),
    ('CMYK', (0,255,255,0), 'tif', [255,0,0]),
    ('CMYK', (0,0,0,255), 'jpg', [0,0,0]), ('I;16', 0, 'png', [0]*3), ('I;16', 65535, 'png', [255]*3),
    ('I;16', 30000, 'png', [117]*3),
    ('I;16', 30000, 'tif', [117]*3)])
def test_modes(tmp_path, mode, color, suffix, rgb):
    im = Photo.create(photo(tmp_path/f'a.{suffix}', color, (6,5), mode))
    assert im.mode=='RGB' and im.size==(6,5) and np.allclose(np.asarray(im), rgb, atol=2 if suffix=='jpg' else 0)

def test_palette(tmp_path):
    im = Image.new('P', (4,4), 3)
    im.putpalette([0,0,0, 255,0,0, 0,255,0, 10,20,30])
    im.save(tmp_path/'a.png'); im.save(tmp_path/'a.gif')
    for f in tmp_path.ls(): assert at(Photo.create(f), 1, 1)==[10,20,30]

def test_a_good_photo_with_an_odd_exif_tag(tmp_path):
    "Pillow cannot write these tags anew; they are nothing that the course wants"
    tags = (b'Exif\0\0MM\0*\0\0\0\x08\0\x02' + b'\x01\x12\0\x03\0\0\0\x01\0\x06\0\0'   # turned
            + b'\x01\x28\0\x02\0\0\0\x03no\0\0' + bytes(4))                            # a unit that is a text
    Image.new('L', (64,32), 255).save(tmp_path/'a.jpg', exif=tags)
    assert Photo.create(tmp_path/'a.jpg').size==(32,64) and broken_images(tmp_path)==[]

def test_whatever_a_decoder_raises_is_told(tmp_path, monkeypatch):
    "AVIF's raises a RuntimeError, for one"
    photo(tmp_path/'a.png')
    def fail(*args): raise RuntimeError('Failed to decode image')
    monkeypatch.setattr(Image, 'open', fail)
    with pytest.raises(Exception) as e: Photo.create(tmp_path/'a.png')
    assert one_line(e, tmp_path/'a.png', 'Failed to decode image')

def test_names_that_are_not_utf8(tmp_path):
    "As old zips leave them"
    path = photo_set(tmp_path/os.fsdecode(b'caf\xe9'))
    photo(path/'train'/'cat'/os.fsdecode(b'caf\xe9.jpg'))
    assert len(fingerprint(path))==16 and len(get(path).train_ds)==9
    assert data_name(path)=='caf\ufffd'   # a record is UTF-8

@pytest.mark.parametrize('kind', [str, Path, Path.read_bytes, lambda f: np.asarray(Image.open(f)),
                                  lambda f: Image.open(f).convert('RGB')])
def test_what_predict_takes(tmp_path, kind):
    path = photo_set(tmp_path/'set')
    learn = get_learner(get(path), get_fcn(2, widths=(8,8)), 'fp32')
    with learn.no_bar(): assert learn.predict(kind(path/'val'/'cat'/'0.jpg'))[0] in ('cat','dog')

def test_images_of_odd_sizes_and_names_train(tmp_path):
    path = photo_set(tmp_path/'mit Leerzeichen und Ümläut', ('un chat','狗'), ('un chat','狗'))
    photo(path/'train'/'狗'/'1x1.png', size=(1,1))
    photo(path/'train'/'狗'/'wide.png', size=(10000,10))
    photo(path/'val'/'狗'/'tall 🐕.png', size=(10,10000))
    dls = get(path, bs=10)
    assert sorted(dls.vocab)==['un chat','狗']
    for dl in dls.loaders:
        x,y = dl.one_batch()
        assert x.shape[1:]==(3,32,32) and x.isfinite().all() and x.std()>0
    assert broken_images(path)==[] and len(fingerprint(path))==16

# --- the data folder is only read -------------------------------------------------------------------------------
def test_nothing_is_written_into_the_data_folder(tmp_path):
    path = photo_set(tmp_path/'set', n=10)
    def listing(): return sorted((str(o), o.stat().st_mtime_ns) for o in [path, *path.rglob('*')])
    before = listing()
    for o in path.rglob('*'): o.chmod(0o555 if o.is_dir() else 0o444)
    learn = tiny_learner(path)
    learn.lr_find(num_it=5, show_plot=False)
    learn.fit_one_cycle(1, 1e-3)
    learn.save('weights')
    assert listing()==before

# --- drawing the sample -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('n', [20,120])
def test_a_full_disk_leaves_no_half_sample(tmp_path, monkeypatch, n):
    saves,save = [],Image.Image.save
    def full(self, *args, **kwargs):
        saves.append(1)
        if len(saves)>7: raise OSError(errno.ENOSPC, 'No space left on device')
        return save(self, *args, **kwargs)
    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(Exception) as e: make_sample(tmp_path/'sub'/'set', n, n, 32)
    assert one_line(e, tmp_path/'sub'/'set', 'No space left', 'make room')
    assert [o for o in tmp_path.rglob('*') if o.name!='sub']==[]
    monkeypatch.setattr(Image.Image, 'save', save)
    assert len(get_image_files(make_sample(tmp_path/'sub'/'set', n, n, 32)))==2*n

def test_two_processes_draw_one_sample(tmp_path, drawn):
    code = f"from resnet_course.kit.photos import fingerprint; from resnet_course.kit.sample import make_sample; from pathlib import Path; print(fingerprint(make_sample({str(tmp_path/'set')!r}, 64, 24, 32)))"
    ps = [subprocess.Popen([sys.executable,'-c',code], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outs = [p.communicate() for p in ps]
    assert [p.returncode for p in ps]==[0,0], outs
    assert {o.strip() for o,_ in outs}=={fingerprint(drawn)} and tmp_path.ls()==[tmp_path/'set']

def test_the_seed_decides(tmp_path):
    a = make_sample(tmp_path/'a', 20, 10, 32)
    assert fingerprint(make_sample(tmp_path/'b', 20, 10, 32))==fingerprint(a)
    assert fingerprint(make_sample(tmp_path/'c', 20, 10, 32, seed=1))!=fingerprint(a)

def test_a_sample_that_is_there_is_kept_and_nothing_else_taken_for_it(tmp_path, drawn):
    before = [(o, o.stat().st_mtime_ns) for o in get_image_files(drawn)]
    assert make_sample(drawn, n_train=64, n_val=24, size=32)==drawn
    mine = photo_set(tmp_path/'mine')
    for path,n in ((drawn,65), (mine,64)):
        with pytest.raises(Exception) as e: make_sample(path, n_train=n, n_val=24, size=32)
        assert one_line(e, path, 'something other', 'another folder')
    assert [(o, o.stat().st_mtime_ns) for o in get_image_files(drawn)]==before and len(get_image_files(mine))==16

# --- which data -------------------------------------------------------------------------------------------------
def test_no_network(monkeypatch):
    def fail(url, **kwargs): raise URLError('no route to host\nsecond line')
    monkeypatch.setattr(download, 'urlopen', fail)
    with pytest.raises(Exception) as e: course_path('imagenette')
    assert one_line(e, 'imagenette', 'URLError', 'no route to host', 'RESNET_COURSE_DATA=sample')
    assert '[' not in str(e.value)   # the reason as words, not as Python's list of lines

@pytest.mark.parametrize('there', [[], ['val/n01440764/1.JPEG']])
def test_half_an_imagenette(tmp_path, monkeypatch, there):
    "As a copy leaves it that was cut off"
    monkeypatch.setattr(data, 'fastai_folder', lambda _: tmp_path)
    for o in ('imagenette2-160','imagenette2'): (tmp_path/o).mkdir()
    for o in there: photo(tmp_path/'imagenette2-160'/o)
    for presize,folder,n in ((160,'imagenette2-160',len(there)), (224,'imagenette2',0)):
        with pytest.raises(Exception) as e: course_path('imagenette', presize)
        assert one_line(e, tmp_path/folder, f'holds {n} of', 'delete it')

def test_the_argument_comes_before_the_environment(tmp_path, monkeypatch):
    mine,yours = photo_set(tmp_path/'mine'), photo_set(tmp_path/'yours')
    monkeypatch.setenv('RESNET_COURSE_DATA', str(mine))
    assert course_path()==course_path('imagenette')==mine and course_path(yours)==course_path(str(yours))==yours
    drawn = []
    monkeypatch.setattr(data, 'make_sample', lambda dest, **kw: drawn.append(dest) or dest)
    assert course_path('sample')==drawn[0]
    monkeypatch.setenv('RESNET_COURSE_DATA', 'sample')
    assert course_path()==drawn[0]
    monkeypatch.setenv('RESNET_COURSE_DATA', str(tmp_path/'gone'))
    for name in (None, 'imagenette'):
        with pytest.raises(Exception) as e: course_path(name)
        assert one_line(e, tmp_path/'gone')

def test_an_error_without_a_text(tmp_path, monkeypatch):
    f = photo(tmp_path/'a.jpg')
    def fails(*args): raise OSError()
    monkeypatch.setattr('PIL.Image.open', fails)
    with pytest.raises(Exception) as e: Photo.create(f)
    assert one_line(e, 'a.jpg', '(OSError)')

# --- small pictures, in memory ----------------------------------------------------------------------------------
def test_the_mnist_format(tmp_path):
    _,made = mnist_files(tmp_path)
    *arrays,classes = load_arrays(tmp_path)
    assert [a.shape for a in arrays]==[(3,1,4,5),(3,),(3,1,4,5),(3,)] and len(classes)==10
    for a,b in zip(arrays, made): assert (a.numpy().reshape(b.shape)==b).all()

@pytest.mark.parametrize('labels, name', [([9,0,0,3,0,2,7,2,5,5,0], 'Ankle boot'), ([5,0,4,1,9,2,1,3,1,4,3], '9')])
def test_only_clothes_are_called_clothes(tmp_path, labels, name):
    "Digits have files of the same names"
    mnist_files(tmp_path, n=11, labels=labels)
    assert load_arrays(tmp_path)[-1][9]==name

@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'text', lambda b: gzip.compress(b'')])
@pytest.mark.parametrize('which', range(4))
def test_a_broken_mnist_file(tmp_path, spoil, which):
    file = mnist_files(tmp_path)[0].ls().sorted()[which]
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(Exception) as e: load_arrays(tmp_path)
    assert one_line(e, file, 'fetch it again')

def test_a_missing_mnist_file(tmp_path):
    file = mnist_files(tmp_path)[0]/'t10k-labels-idx1-ubyte.gz'
    file.unlink()
    with pytest.raises(Exception) as e: load_arrays(tmp_path)
    assert one_line(e, file, 'fetch it again')

def test_photos_in_deeper_folders_are_named(tmp_path, capsys):
    path = photo_set(tmp_path/'set')
    for i in range(3): photo(path/'train'/'cat'/'2023'/f'{i}.jpg')
    assert get_data(path, 32, 32, 4).train.n==8 and data.run_settings(path)['bs']==8
    out = capsys.readouterr().out
    assert '3 photos' in out and 'left out' in out and str(path/'train'/'cat'/'2023') in out and out.count('\n')==1

@pytest.mark.parametrize('kind', ['folder','zip','nested zip'])
def test_a_folder_and_a_zip_hold_the_same(drawn, tmp_path, kind):
    path = drawn
    if kind!='folder':
        top = drawn.parent if 'nested' in kind else drawn
        path = Path(shutil.make_archive(tmp_path/'set', 'zip', top, drawn.name if 'nested' in kind else None))
    x_train,y_train,x_val,y_val,classes = load_arrays(path)
    for x,y,split in ((x_train,y_train,'train'), (x_val,y_val,'val')):
        files = get_image_files(drawn/split).sorted()
        assert classes==sorted({f.parent.name for f in files})
        assert [classes[i] for i in y]==[f.parent.name for f in files]
        assert all((a.numpy()==np.asarray(Photo.create(f)).transpose(2,0,1)).all() for a,f in zip(x, files))

@pytest.mark.parametrize('spoil, words', [
    (lambda p: shutil.rmtree(p/'val'), ['no images in train/<class>/ and test/<class>/']),
    (lambda p: shutil.rmtree(p/'train'), ['no images in train/<class>/']),
    (lambda p: shutil.rmtree(p/'train'/'dog'), ['train', 'only one class (cat)']),
    (lambda p: [f.unlink() for f in (p/'train'/'dog').iterdir()], ['train/dog holds no photos', 'val/dog does']),
    (lambda p: photo(p/'train'/'dog'/'9.jpg', size=(41,40)), ['9.jpg', 'one size']),
    (lambda p: [photo(f, size=(41,40)) for f in get_image_files(p/'val')], ['val', 'one size']),
    (lambda p: (p/'val'/'cat'/'0.jpg').write_text('x'), ['0.jpg', 'not a readable image'])])
@pytest.mark.parametrize('zipped', [False,True])
def test_a_set_that_cannot_be_loaded_whole(tmp_path, spoil, words, zipped):
    path = photo_set(tmp_path/'set')
    spoil(path)
    if zipped: path = Path(shutil.make_archive(tmp_path/'set', 'zip', path))
    with pytest.raises(Exception) as e: load_arrays(path)
    assert one_line(e, path, *words)

def as_folder(path): return path
def as_zip(path): return Path(shutil.make_archive(f'{path}-zipped', 'zip', path))
def as_nested(path): return Path(shutil.make_archive(f'{path}-nested', 'zip', path.parent, path.name))
forms = pytest.mark.parametrize('form', [as_folder,as_zip,as_nested])

@forms
def test_arrays_leave_out_what_folders_do(tmp_path, capsys, form):
    path = photo_set(tmp_path/'set')
    for o in ('train/cat/deep/1.jpg', 'train/2.jpg'): photo(path/o)
    for o in ('train/cat/notes.txt', 'train/dog/3.xyz', 'val/dog/4.doc'): (path/o).write_text('x')
    for o in ('.old/train/cat/5.jpg', '__MACOSX/train/cat/6.jpg', 'copy/train/cat/7.jpg', 'train/.hidden/8.jpg'): photo(path/o)
    (path/'train'/'emu').mkdir()
    got = form(path)
    assert [len(o) for o in load_arrays(got)]==[8,8,8,8,2]
    told = capsys.readouterr().out
    for o in ('2 photos are left out: not directly in train/<class>/', '2 files are left out: in train/<class>/, but with no ending',
              '1 file is left out: in val/<class>/,', 'emu holds no photos, so it is no class'): assert o in told
    if form is as_folder:
        photos_by_class(path)
        assert capsys.readouterr().out==told

@forms
@pytest.mark.parametrize('train, val, words', [(('cat',), ('cat',), 'only one class (cat)'),
    (('cat','cat ','dog'), ('cat','dog'), 'look the same'), (('cat','dog'), ('Cat','dog'), 'rename one of them'),
    (('cat','dog'), ('cat','dog','emu'), 'no folder in train for emu')])
def test_classes_of_arrays_are_those_of_folders(tmp_path, form, train, val, words):
    path = photo_set(tmp_path/'set', train, val)
    for split in ('val','test'):
        if split=='test': (path/'val').rename(path/'test')
        with pytest.raises(Exception) as e: load_arrays(form(path))
        assert one_line(e, words) and ('train' if 'one class' in words or 'same' in words else split) in str(e.value)

@forms
def test_the_test_photos_come_before_vals(tmp_path, capsys, form):
    path = photo_set(tmp_path/'set')
    shutil.copytree(path/'val', path/'test')
    photo(path/'test'/'dog'/'9.jpg')
    assert [len(o) for o in load_arrays(form(path))]==[8,8,9,9,2] and '8 photos in ' in capsys.readouterr().out

def test_two_sets_in_one_zip(tmp_path):
    for o in ('a','b'): photo_set(tmp_path/'sets'/o)
    for form in (as_folder,as_zip):
        with pytest.raises(Exception) as e: load_arrays(form(tmp_path/'sets'))
        assert one_line(e, 'holds several sets, such as a and b')

@pytest.mark.parametrize('which, shape, most', [('train-labels-idx1',(2,),9), ('t10k-labels-idx1',(4,),9), ('train-labels-idx1',(3,),11),
    ('train-images-idx3',(3,4),9), ('t10k-images-idx3',(0,4,5),9), ('t10k-images-idx3',(3,5,5),9), ('train-labels-idx1',(3,1),9)])
def test_mnist_files_that_do_not_fit(tmp_path, which, shape, most):
    raw,_ = mnist_files(tmp_path)
    head = bytes([0,0,8,len(shape)]) + b''.join(o.to_bytes(4,'big') for o in shape)
    with gzip.open(raw/f'{which}-ubyte.gz', 'wb') as f: f.write(head+bytes([most])*int(np.prod(shape)))
    with pytest.raises(Exception) as e: load_arrays(tmp_path)
    assert one_line(e, raw, 'fetch both again')

def test_half_a_cifar(tmp_path, monkeypatch):
    monkeypatch.delenv('RESNET_COURSE_CIFAR10', raising=False)
    monkeypatch.setattr(data, 'fastai_folder', lambda kind: tmp_path)
    photo_set(tmp_path/'cifar10')
    with pytest.raises(Exception) as e: course_path('cifar10')
    assert one_line(e, tmp_path/'cifar10', 'of CIFAR-10\'s 60,000', 'delete it')

@pytest.mark.parametrize('card', ['{', '[]', '{"size": 3}', '{"mine": true}'])
def test_a_file_called_sample_json_makes_no_sample(tmp_path, card):
    path = photo_set(tmp_path/'set')
    for o in (path, tmp_path): (o/'sample.json').write_text(card)
    assert data_name(path)=='set' and run_settings(path)==dict(presize=160, resize=128, bs=8)

def test_a_locked_zip(tmp_path):
    "Its pictures are there, and cannot be opened"
    path = photo_set(tmp_path/'set')
    with ZipFile(tmp_path/'a.zip', 'w') as z:
        for f in get_image_files(path).sorted(): z.write(f, f.relative_to(path))
    b = (tmp_path/'a.zip').read_bytes()
    for head,at in ((b'PK\3\4',6), (b'PK\1\2',8)):   # the flag in front of each file, and in the list of them
        b = head.join(o[:at-4] + bytes([o[at-4]|1]) + o[at-3:] if i else o for i,o in enumerate(b.split(head)))
    (tmp_path/'a.zip').write_bytes(b)
    with pytest.raises(Exception) as e: load_arrays(tmp_path/'a.zip')
    assert one_line(e, tmp_path/'a.zip/train/cat/0.jpg', 'encrypted')

def test_a_broken_zip(tmp_path):
    (tmp_path/'a.zip').write_text('x')
    with pytest.raises(Exception) as e: load_arrays(tmp_path/'a.zip')
    assert one_line(e, tmp_path/'a.zip', 'not a complete zip')

@pytest.mark.parametrize('compression', [ZIP_STORED,ZIP_DEFLATED])
def test_a_zip_with_a_damaged_picture(tmp_path, compression):
    path = photo_set(tmp_path/'set')
    with ZipFile(tmp_path/'a.zip', 'w', compression) as z:
        for f in get_image_files(path).sorted(): z.write(f, f.relative_to(path))
        at = z.getinfo('val/dog/0.jpg').header_offset
    b = bytearray((tmp_path/'a.zip').read_bytes())
    b[at+100:at+140] = bytes(40)
    (tmp_path/'a.zip').write_bytes(b)
    with pytest.raises(Exception) as e: load_arrays(tmp_path/'a.zip')
    assert one_line(e, tmp_path/'a.zip/val/dog/0.jpg')

def test_a_zip_from_a_mac(tmp_path):
    "It has a hidden companion of each file"
    path = photo_set(tmp_path/'set')
    with ZipFile(tmp_path/'a.zip', 'w') as z:
        for f in get_image_files(path):
            name = f.relative_to(path)
            z.write(f, name)
            z.writestr(f'__MACOSX/{name.parent}/._{name.name}', b'no picture')
    assert [len(o) for o in load_arrays(tmp_path/'a.zip')]==[8,8,8,8,2]

def six_signs(path): return [photo(path/f'{c}/{i}.jpg') for c in range(6) for i in range(10)]

@pytest.mark.parametrize('spoil, words', [
    (lambda p: shutil.rmtree(p/'3'), '5 folders'),
    (lambda p: (shutil.rmtree(p), p.write_text('a file')), '0 folders'),
    (lambda p: (p/'0/0.jpg').unlink(), '59 photos'),
    (lambda p: ([f.unlink() for f in (p/'2').ls()[1:]], [photo(p/f'1/x{i}.jpg') for i in range(9)]), 'of one sign 1')])
def test_signs_that_are_too_few(tmp_path, spoil, words):
    six_signs(tmp_path/'signs')
    spoil(tmp_path/'signs')
    with pytest.raises(Exception) as e: signs_dls(tmp_path/'signs')
    assert one_line(e, tmp_path/'signs', words)

def test_a_hidden_folder_is_no_sign(tmp_path):
    six_signs(tmp_path/'signs')
    (tmp_path/'signs/.ipynb_checkpoints').mkdir()
    assert list(signs_dls(tmp_path/'signs').vocab)==list('012345')

def test_signs_in_deeper_folders_are_left_out(tmp_path, capsys):
    six_signs(tmp_path/'signs')
    n = len(signs_dls(tmp_path/'signs').train_ds) + len(signs_dls(tmp_path/'signs').valid_ds)
    capsys.readouterr()
    photo(tmp_path/'signs/0/extra/a.jpg')
    dls = signs_dls(tmp_path/'signs')
    assert dls.c==6 and len(dls.train_ds)+len(dls.valid_ds)==n and '1 photo is left out: not directly in' in capsys.readouterr().out

@pytest.mark.parametrize('name', ['sample','imagenette','cifar10'])
def test_a_path_is_a_place_whatever_it_is_called(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    photo_set(tmp_path/name)
    monkeypatch.setattr(data, 'imagenette_on_disk', lambda *_: tmp_path/'copy')
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(tmp_path))
    assert course_path(Path(name)).resolve()==course_path(name+'/').resolve()==(tmp_path/name).resolve()
    assert course_path(name).resolve()!=(tmp_path/name).resolve()

@pytest.mark.skipif(sys.platform!='linux', reason='other systems have no such names')
def test_a_class_that_no_file_could_name(tmp_path):
    path = photo_set(tmp_path/'set', *[('cat',os.fsdecode(b'caf\xe9'))]*2)
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, 'UTF-8', 'rename')

@pytest.mark.parametrize('name', ['cifar10','fashion','signs'])
def test_where_the_small_sets_are(tmp_path, monkeypatch, name):
    var = f'RESNET_COURSE_{name.upper()}'
    monkeypatch.setenv(var, str(tmp_path))
    assert course_path(name)==tmp_path
    monkeypatch.setenv(var, str(tmp_path/'gone'))
    with pytest.raises(Exception) as e: course_path(name)
    assert one_line(e, tmp_path/'gone', var)
    monkeypatch.delenv(var)
    def fail(*args, **kwargs): raise URLError('no route to host')
    monkeypatch.setattr(download, 'urlopen', fail)
    monkeypatch.setattr(data, '_debian_fashion', tmp_path/'none')
    with pytest.raises(Exception) as e: course_path(name)
    assert one_line(e, var) and ('no route to host' in str(e.value) or name=='signs')

def test_the_fingerprint_of_a_file_and_of_folders_without_splits(tmp_path):
    path = photo_set(tmp_path/'set')
    zipped = Path(shutil.make_archive(tmp_path/'a', 'zip', path))
    assert data_name(zipped)=='a' and data_name(path)=='set'
    before = fingerprint(zipped), fingerprint(path/'train')
    (path/'train'/'cat'/'0.jpg').write_bytes(b'other')
    shutil.make_archive(tmp_path/'a', 'zip', path)
    after = fingerprint(zipped), fingerprint(path/'train')
    assert before[0]!=after[0] and before[1]!=after[1] and len({*before, *after})==4
