"Pictures and archives that somebody else has made: each is read or refused in one line, in little memory, and nothing is waited for"
import io, random, struct, subprocess, sys, zlib
from functools import lru_cache
import pytest
from PIL import Image
from resnet_course.data import get_data
from resnet_course.kit.arrays import load_arrays
from resnet_course.kit.files import CourseError
from resnet_course.kit.photos import broken_images, fingerprint, Photo, read_photo
from resnet_course.loading import cached_data
from conftest import a_socket, device, loop, mnist_files, one_line, photo_set, pipe

# --- pictures that are damaged, or made to harm -----------------------------------------------------------------
def saved(form, size=(160,120), **kwargs):
    x = random.Random(0).randbytes(48*64*3)
    Image.frombytes('RGB', (64,48), x).resize(size).save(b:=io.BytesIO(), form, **kwargs)
    return b.getvalue()

def patched(b, at, new): return b[:at] + new + b[at+len(new):]
def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
def png(w, h, data, extra=b''):
    head = struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + extra + chunk(b'IDAT', zlib.compress(data, 9)) + chunk(b'IEND', b'')

def jpeg(w, h, **kwargs):
    b = saved('jpeg', **kwargs)
    return patched(b, b.find(b'\xff\xc2' if kwargs else b'\xff\xc0')+5, struct.pack('>HH', h, w))

def passes(n, side):
    b = saved('jpeg', (side,side), progressive=True)
    return b[:-2] + b[b.rfind(b'\xff\xda'):-2]*n + b[-2:]

def tiff(w, h, tile):
    "One tile of zeros"
    data = zlib.compress(bytes(1000))
    tags = ((256,w), (257,h), (258,8), (259,8), (262,1), (277,1), (322,tile), (323,tile), (324,134), (325,len(data)))
    return b'II*\0' + struct.pack('<IH', 8, 10) + b''.join(struct.pack('<HHII', t, 4, 1, v) for t,v in tags) + bytes(4) + data

def ico(b): return struct.pack('<HHHBBBBHHII', 0, 1, 1, 16, 16, 0, 0, 1, 32, len(b), 22) + b

def bombs():
    much = zlib.compress(bytes(3*10**8), 9)
    text = dict(ztxt=chunk(b'zTXt', b'Comment\0\0'+much), itxt=chunk(b'iTXt', b'Comment\0\1\0\0\0'+much),
                iccp=chunk(b'iCCP', b'name\0\0'+much), parts=chunk(b'aaAa', b'')*10**5)
    b = saved('jpeg')
    yield from ((f'{k}.png', png(8, 8, bytes(200), v)) for k,v in text.items())
    yield 'claims.png', png(60000, 60000, b'')
    yield 'idat.png', png(8, 8, bytes(3*10**8))
    yield 'claims.jpg', jpeg(65500, 65500)
    yield 'claims.jpeg', jpeg(65500, 65500, progressive=True)
    yield 'passes.jpg', passes(200, 3000)
    yield 'parts.jpg', b[:2] + b'\xff\xfe\0\2'*10**5 + b[2:]
    yield 'tags.jpg', b[:2] + (b'\xff\xe1\xff\xffExif\0\0' + bytes(65527))*400 + b[2:]
    yield 'claims.gif', patched(saved('gif'), 6, b'\xff'*4)
    yield 'claims.bmp', patched(saved('bmp'), 18, struct.pack('<ii', 60000, -60000))
    yield 'claims.tga', patched(saved('tga'), 12, b'\xff'*4)
    yield 'claims.ppm', b'P6 1000000 1000000 255\n'
    yield 'claims.tif', tiff(60000, 60000, 64)
    yield 'tile.tif', tiff(64, 64, 2**15)
    yield 'within.ico', ico(png(60000, 60000, b''))
    b = saved('webp', save_all=True, append_images=[Image.new('RGB', (160,120))])
    yield 'claims.webp', patched(b, b.find(b'VP8X')+12, b'\xff\x3f\0'*2)
    b = saved('jpeg2000')
    yield 'box.jp2', patched(b, b.find(b'jp2h')-4, b'\xff'*4)

def mutated(b, rng):
    b = bytearray(b)
    for _ in range(rng.randint(1,6)):
        at,how = rng.randrange(min(len(b), rng.choice([200,10**6]))),rng.randrange(5)
        if how==0: b[at] = rng.randrange(256)
        elif how==1: b[at:at+4] = rng.choice([b'\xff'*4, b'\x7f\xff\xff\xff', bytes(4), b'\xff\xff\xff\x7f'])
        elif how==2: del b[at:at+rng.randint(1,40)]
        elif how==3: b[at:at] = b[max(0,at-30):at]*rng.randint(1,5)
        else: del b[rng.randint(50, max(50,len(b))):]
    return bytes(b)

kinds = dict(jpg='jpeg', png='png', gif='gif', webp='webp', bmp='bmp', tif='tiff', jp2='jpeg2000', tga='tga', ico='ico')
def mutations(n):
    ways = [(k, saved(f)) for k,f in kinds.items()] + [('jpeg', saved('jpeg', progressive=True)),
            ('tiff', saved('tiff', compression='tiff_lzw')), ('apng', saved('png', save_all=True, append_images=[Image.new('RGB', (160,120))]))]
    for i in range(n):
        k,b = ways[i%len(ways)]
        yield f'{i}.{k}', mutated(b, random.Random(i))

in_1_gb = '''
import os, re, resource, sys, warnings
from fastai.vision.all import *
from resnet_course.kit.files import CourseError
from resnet_course.kit.photos import broken_images, read_photo
from resnet_course.data import get_data
from resnet_course.loading import cached_data
from resnet_course.recipe import Trained, recipe
from resnet_course.fcn import get_fcn
from resnet_course.cli import checks

path,bad = map(Path, sys.argv[1:])
trained = Trained(get_fcn(2, widths=(4,4)), ['cat','dog'], recipe('tiny'))
trained.predict([path/'val/cat/0.jpg'])
get_data(path, 32, 32, 4).valid.one_batch()
held = int(re.search(r'VmData:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (held*2**10+2**30,)*2)

def line(f, name):
    "Whether it is read, or what one line says of it"
    try: f()
    except CourseError as e:
        assert name in str(e) and '\\n' not in str(e) and 'no memory' not in str(e), e
        return str(e)

refused = {f.name: line(lambda: read_photo(f), f.name) for f in bad.ls()}
for name,said in refused.items():
    assert (line(lambda: trained.predict([bad/name]), name) is None)==(said is None), name
listed = {f.name for f,_ in broken_images(bad)}
assert listed=={k for k,v in refused.items() if v}, listed
there = path/'val/cat'
def load(names):
    "As photos of a class, through both loaders"
    for o in names: os.replace(bad/o, there/o)
    for dls in (lambda: get_data(path, 32, 32, 4), lambda: cached_data(path, 32, 32, 4, cache=Path('cache'))):
        said = line(lambda: [len(b) for b in dls().valid], names[0] if names else '')
        assert (said is None)==(refused[names[0]] is None if names else True), said
    for o in names: os.replace(there/o, bad/o)
load([k for k in refused if k not in listed])
for o in sorted(listed)[::max(1, len(listed)//20)]: load([o])
print('all', len(refused), len(listed))
'''
def run_in_1_gb(tmp_path, files):
    path,bad = photo_set(tmp_path/'set', n=2),tmp_path/'bad'
    bad.mkdir()
    for name,b in files: (bad/name).write_bytes(b)
    p = subprocess.run([sys.executable,'-W','ignore','-c',in_1_gb,path,bad], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert p.returncode==0, p.stderr[-2000:]
    return [int(o) for o in p.stdout.split()[-2:]]

linux = pytest.mark.skipif(sys.platform!='linux', reason='limits of other systems differ')
@pytest.mark.faults('a picture is made to harm', 20)
@linux
def test_pictures_made_to_harm(tmp_path):
    n,refused = run_in_1_gb(tmp_path, bombs())
    assert n==20 and refused>=17

@pytest.mark.parametrize('name,picture', [('a.png', png(8192, 8193, b'')), ('b.jpg', jpeg(8193, 8192)), ('c.tif', tiff(8193, 8192, 64)),
                                          ('d.tif', tiff(64, 64, 8208))], ids=['png','jpg','tif','tile'])
def test_one_limit_for_all(tmp_path, name, picture):
    "It is the course's, which is below Pillow's own; the size in the header is told"
    (f:=tmp_path/name).write_bytes(picture)
    with pytest.raises(CourseError, match=r'it has \d+ by \d+ pixels\): make it smaller: up to 67 million are read'): read_photo(f)

made = lru_cache(lambda: dict(bombs()))
def large(f):
    with f.open('wb') as o: o.truncate(2**28+1)   # takes no room on the disk
@pytest.mark.parametrize('name,why', [('parts.png','its header has too many parts'), ('parts.jpg','its header has too many parts'),
    ('tags.jpg','its tags have too many parts'), ('passes.jpg','it is in 210 passes'), ('large.jpg','it is too large')])
def test_what_would_take_long_says_so(tmp_path, name, why):
    f = tmp_path/name
    if name=='large.jpg': large(f)
    else: f.write_bytes(made()[name])
    with pytest.raises(CourseError, match=why): read_photo(f)

def test_a_picture_at_the_limit_is_read(tmp_path):
    Image.new('L', (8192,8192)).save(f:=tmp_path/'a.png')
    assert read_photo(f).size==(8192,8192)

@pytest.mark.faults('a picture is damaged', 204)
@linux
def test_damaged_pictures(tmp_path):
    n,refused = run_in_1_gb(tmp_path, mutations(204))
    assert n==204 and 50<refused<190

# --- what is no file --------------------------------------------------------------------------------------------
def endless(f): f.symlink_to('/dev/tty')
def round_about(f): f.symlink_to('b.jpg'); f.with_name('b.jpg').symlink_to(f.name)

reading = dict(get_data=lambda p: get_data(p, 32, 32, 4), cached=lambda p: cached_data(p, 32, 32, 4, cache=False), arrays=load_arrays,
               fingerprint=fingerprint)
@pytest.mark.faults('a pipe or a device in place of a file')
@linux
@pytest.mark.parametrize('make', [pipe,a_socket,device,endless,loop,round_about])
def test_only_files_are_opened(tmp_path, make):
    path = photo_set(tmp_path/'set')
    make(odd:=path/'val/dog/a.jpg')
    for read in (*reading.values(), lambda _: Photo.create(odd)):
        with pytest.raises(Exception) as e: read(path)
        assert one_line(e, path/'val/dog')
    assert odd in [f for f,_ in broken_images(path)]

@pytest.mark.faults('a pipe or a device in place of a file')
@linux
@pytest.mark.parametrize('name', ['train-labels-idx1','t10k-images-idx3','t10k-labels-idx1'])
@pytest.mark.parametrize('make', [pipe,device])
def test_only_files_are_opened_of_mnist_too(tmp_path, make, name):
    odd = mnist_files(tmp_path)[0]/f'{name}-ubyte.gz'
    odd.unlink()
    make(odd)
    with pytest.raises(Exception) as e: load_arrays(tmp_path)
    assert one_line(e, odd, 'and no file')
