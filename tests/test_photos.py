"A photo is upright 8-bit RGB however it is given; what lies in a folder is told as it is, on every machine"
import errno, io, os, shutil, struct, sys, types, unicodedata, zlib
import fastai.data.transforms, numpy as np, pytest, torch
from fastai.vision.all import *
from itertools import product   # after fastai, which has another
from PIL import Image
from resnet_course import data
from resnet_course.kit import files as kit_files, photos, sample
from resnet_course.kit.arrays import array_dls, load_arrays
from resnet_course.kit.files import check_batch, shared_memory
from resnet_course.kit.photos import (broken_images, class_of, data_name, decode_photo, fingerprint, load_photo, Photo,
                                      photo_files, photo_suffixes, photos_by_class, sample_card)
from resnet_course.kit.sample import make_sample
from resnet_course.data import course_path, get_data, n_workers, run_settings
from resnet_course.fcn import get_fcn
from resnet_course.loading import cached_chapter_data, cached_data
from resnet_course.training import get_learner
from conftest import one_line, photo, photo_set

# --- which side is up -------------------------------------------------------------------------------------------
reference = np.kron(np.array([[[250,0,0],[0,250,0],[0,0,250]], [[0,0,0],[250,250,250],[250,250,0]]], np.uint8),
                    np.ones((16,16,1), np.uint8))   # (32, 48, 3), without any symmetry
back = {1:None, 2:'FLIP_LEFT_RIGHT', 3:'ROTATE_180', 4:'FLIP_TOP_BOTTOM', 5:'TRANSPOSE', 6:'ROTATE_90', 7:'TRANSVERSE',
        8:'ROTATE_270'}   # how an upright picture has to be stored

def saved(file, orientation, **kwargs):
    "The reference, stored in another position, with the tag that tells it"
    im,exif = Image.fromarray(reference),Image.Exif()
    if t:=back[orientation]: im = im.transpose(Image.Transpose[t])
    exif[0x112] = orientation
    im.save(file, exif=exif, **kwargs)
    return file

kinds = dict(jpg=dict(quality=95, subsampling=0), progressive=dict(format='JPEG', quality=95, subsampling=0, progressive=True),
    mpo=dict(quality=95, subsampling=0), png={}, webp=dict(lossless=True), avif=dict(quality=95), tif={},
    lzw=dict(format='TIFF', compression='tiff_lzw'), deflated=dict(format='TIFF', compression='tiff_adobe_deflate'))
suffix = dict(progressive='jpeg', lzw='tiff', deflated='tif')

def at_end(f): o = io.BytesIO(f.read_bytes()); o.read(); return o
def opened(f): return open(f, 'rb')
ways = dict(path=Path, text=str, bytes=Path.read_bytes, view=lambda f: memoryview(f.read_bytes()), file=opened, read=at_end,
    function=lambda f: partial(open, f, 'rb'), picture=Image.open, loaded=lambda f: (im:=Image.open(f), im.load())[0],
    converted=lambda f: Image.open(f).convert('RGB'), copied=lambda f: Image.open(f).copy(), Photo=Photo.create,
    twice=lambda f: Photo.create(Photo.create(f)))

def is_reference(x):
    x = np.asarray(x)
    return x.shape==reference.shape and x.dtype==np.uint8 and abs(x.astype(int)-reference).mean()<6

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('orientation', back)
def test_every_way_shows_the_same_side_up(tmp_path, kind, orientation):
    f = saved(tmp_path/f'a.{suffix.get(kind, kind)}', orientation, **kinds[kind])
    first = np.asarray(Photo.create(f))
    assert is_reference(first)
    for way,give in ways.items():
        assert (np.asarray(Photo.create(give(f)))==first).all(), way
        assert (decode_photo(give(f))==first).all(), way
    assert (load_photo(f, 100)==first).all()

@pytest.mark.parametrize('kind', ['jpg','png','webp'])
def test_an_orientation_that_only_xmp_tells(tmp_path, kind):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    im = Image.fromarray(reference).transpose(Image.Transpose.ROTATE_90)
    f = tmp_path/f'a.{kind}'
    if kind=='png':
        from PIL.PngImagePlugin import PngInfo
        (info:=PngInfo()).add_itxt('XML:com.adobe.xmp', xmp.decode())
        im.save(f, pnginfo=info)
    else: im.save(f, xmp=xmp, **kinds[kind])
    assert is_reference(Photo.create(f)) and is_reference(decode_photo(f))

@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('exif', [b'Exif\0\0nonsense', b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0',
    b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0' + bytes(4)])
def test_tags_that_say_nothing_turn_nothing(tmp_path, exif):
    Image.fromarray(reference).save(tmp_path/'a.jpg', exif=exif, **kinds['jpg'])
    assert is_reference(Photo.create(tmp_path/'a.jpg')) and is_reference(decode_photo(tmp_path/'a.jpg'))
    assert broken_images(tmp_path)==[]

def turned_set(path):
    "Eight photos for each class, one for each orientation"
    for i,kind in enumerate(['tif','jpg','png','webp']):
        for o in back: saved_at(path/('train','val')[i%2]/'ab'[o%2]/f'{o}{kind}.{kind}', o, kind)
    return path
def saved_at(f, o, kind):
    f.parent.mkdir(parents=True, exist_ok=True)
    saved(f, o, **kinds[kind])

def test_loaders_show_the_same_side_up(tmp_path):
    path = turned_set(tmp_path/'set')
    cached = cached_data(path, 32, 32, 4, cache=tmp_path/'cache')
    for ds in (cached.train_ds, cached.valid_ds): assert all(is_reference(o[0]) for o in ds)
    assert all(is_reference(o[0]) for o in get_data(path, 32, 32, 4).train_ds)
    for p in (path, shutil.make_archive(tmp_path/'z', 'zip', path)):
        x_train,_,x_val,*_ = load_arrays(p)
        assert len(x_train)==len(x_val)==16 and all(is_reference(x.permute(1,2,0)) for x in (*x_train, *x_val))

@pytest.mark.parametrize('kind', ['jpg','tif','webp'])
def test_predict_shows_the_same_side_up(tmp_path, kind):
    path = photo_set(tmp_path/'set')
    plain = saved(tmp_path/f'1.{kind}', 1, **kinds[kind])
    for dls in (get_data(path, 32, 32, 4), cached_data(path, 32, 32, 4, cache=False)):
        learn = get_learner(dls, get_fcn(2, widths=(8,8)), 'fp32')
        with learn.no_bar(), learn.no_logging():
            want,_ = learn.get_preds(dl=learn.dls.test_dl([plain]))
            for give in (ways[o] for o in ('path','text','bytes','picture')):
                for o in (5,6):
                    f = saved(tmp_path/f'{o}.{kind}', o, **kinds[kind])
                    assert torch.allclose(learn.predict(give(f))[2], want[0], atol=.02)
                    assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl([give(f)]))[0], want, atol=.02)

loaders = dict(get_data=lambda p: get_data(p, 32, 32, 4), cached_data=lambda p: cached_data(p, 32, 32, 4, cache=False),
    arrays=lambda p: array_dls(load_arrays(p), p, 4))
@pytest.mark.parametrize('make', loaders)
def test_predict_takes_a_photo_in_every_way(tmp_path, make):
    path = photo_set(tmp_path/'set')
    learn = get_learner(loaders[make](path), get_fcn(2, widths=(8,8)), 'fp32')
    f = path/'val'/'dog'/'1.jpg'
    with learn.no_bar(), learn.no_logging():
        want = learn.predict(f)[2]
        for way,give in ways.items(): assert torch.allclose(learn.predict(give(f))[2], want, atol=.001), way
        for odd in (None, 3, object()):
            with pytest.raises(Exception) as e: learn.predict(odd)
            assert one_line(e, type(odd).__name__, 'not a readable image')

several = dict(list=list, tuple=tuple, L=L, column=lambda o: pd.Series(o, index=[7,5,6]), array=np.array,
    texts=lambda o: np.array([*map(str, o)]), walk=iter, set_of_one=lambda o: {o[0]:1}.keys(),
    stack=lambda o: np.stack([Photo.create(f) for f in o]), grey=lambda o: np.stack([Photo.create(f) for f in o])[...,0],
    images=lambda o: TensorImage(np.stack([Photo.create(f) for f in o])).permute(0,3,1,2))
@pytest.mark.parametrize('make', ['cached_data','arrays'])
def test_photos_in_every_kind_of_list(tmp_path, make):
    path = photo_set(tmp_path/'set')
    dls,files = loaders[make](path),[path/'val'/'dog'/f'{i}.jpg' for i in range(3)]
    want, = dls.test_dl(files).one_batch()
    for kind,give in several.items():
        x, = dls.test_dl(give(files)).one_batch()
        assert len(x)==(1 if kind=='set_of_one' else 3) and (kind=='grey' or torch.allclose(x, want[:len(x)])), kind
    for kind,give in ways.items(): assert torch.allclose(*(dls.test_dl(o).one_batch()[0] for o in (give(files[1]), files[1:2]))), kind
    for none in ([], (), pd.Series([], dtype=object), np.array([]), np.zeros((0,40,40,3), np.uint8)):
        with pytest.raises(Exception) as e: dls.test_dl(none)
        assert one_line(e, 'no photos')
    with pytest.raises(Exception) as e: dls.test_dl(pd.DataFrame(dict(file=files)))
    assert one_line(e, 'its column')

def test_bytes_are_not_told(drawn):
    f = drawn/'val'/'ring'/'val_ring_6.JPEG'
    for give in (Path.read_bytes, Image.open, lambda f: np.zeros((9,9,3), np.uint8)):
        with pytest.raises(Exception) as e: cached_data(drawn, 32, 32, 16, cache=False).test_dl([give(f)], with_labels=True)
        assert one_line(e, f'the given {type(give(f)).__name__}', 'with_labels') and len(str(e.value))<150

# --- what is white ----------------------------------------------------------------------------------------------
ramp = np.arange(256).reshape(16,16)/255   # shares of white

def tiff(x, bits, kind=1, photometric=1, big=False):
    "A grey TIFF of these values, as Pillow cannot write them; `kind` 1 has no sign, 2 has one, 3 is floating-point"
    e = '>' if big else '<'
    body = x.astype(x.dtype.newbyteorder(e)).tobytes()
    if bits==12: body = b''.join(bytes([a>>4, (a&15)<<4|b>>8, b&255]) for a,b in x.reshape(-1,2).tolist())
    h,w = x.shape
    tags = [(256,4,w), (257,4,h), (258,3,bits), (259,3,1), (262,3,photometric), (273,4,8), (277,3,1), (278,4,h),
            (279,4,len(body)), (339,3,kind)]
    def entry(tag, size, v):
        return struct.pack(e+'HHI', tag, size, 1) + struct.pack(e+('I' if size==4 else 'HH'), *(v,0)[:5-size])
    head = (b'MM\0*' if big else b'II*\0') + struct.pack(e+'I', 8+len(body))
    return head + body + struct.pack(e+'H', len(tags)) + b''.join(entry(*o) for o in tags) + bytes(4)

def u16(x): return (x*65535).round().astype(np.uint16)
def few(most): return (ramp*most).round().astype(np.uint16)
def pil(x, **kwargs): b = io.BytesIO(); Image.fromarray(x).save(b, **kwargs); return b.getvalue()
def pgm(x, white): return f'P5 16 16 {white}\n'.encode() + (x*white).round().astype('>u2').tobytes()
def f32(x): return x.astype(np.float32)
def i32(x): return x.round().astype(np.int32)
right = {
    '16-bit png':pil(u16(ramp), format='PNG'), '16-bit tiff':tiff(u16(ramp), 16), '12-bit tiff':tiff(few(4095), 12),
    '16-bit tiff, big':tiff(u16(ramp), 16, big=True), '16-bit tiff, white is 0':tiff(65535-u16(ramp), 16, photometric=0),
    '8-bit tiff, white is 0':tiff(255-few(255).astype(np.uint8), 8, photometric=0),
    '16-bit pgm':pgm(ramp, 65535), '10-bit pgm':pgm(ramp, 1023), '16-bit jpeg 2000':pil(u16(ramp), format='JPEG2000'),
    'shares of white':tiff(f32(ramp), 32, 3), 'shares, big':tiff(f32(ramp), 32, 3, big=True),
    'shares, white is 0':tiff(f32(1-ramp), 32, 3, 0), 'floats to 255':tiff(f32(ramp*255), 32, 3),
    'floats to 65535':tiff(f32(ramp*65535), 32, 3), 'integers to 255':tiff(i32(ramp*255), 32, 2),
    'integers to 65535':tiff(i32(ramp*65535), 32, 2), 'by pillow':pil(f32(ramp), format='TIFF')}

@pytest.mark.parametrize('kind', right)
def test_white_is_white(tmp_path, kind):
    (f:=tmp_path/'a.tif').write_bytes(right[kind])
    for x in (Photo.create(f), Photo.create(right[kind]), Photo.create(Image.open(f)), decode_photo(f)):
        assert abs(np.asarray(x).astype(int)-(ramp*255).round()[...,None]).max()<=1
    assert broken_images(tmp_path)==[]

def with_most(b, most):
    "The TIFF `b`, from `tiff`, with the tag MaxSampleValue in place of the one for the strip's rows"
    return b.replace(struct.pack('<HHII', 278, 4, 1, 16), struct.pack('<HHII', 281, 4, 1, most))
formats = dict(png=lambda x: pil(x, format='PNG'), tif=lambda x: tiff(x, 16), pillow=lambda x: pil(x, format='TIFF'),
    big=lambda x: tiff(x, 16, big=True), pgm=lambda x: pgm(x/65535, 65535), array=lambda x: x, deep=lambda x: np.dstack([x]*3),
    swapped=lambda x: x.astype('>u2'), picture=Image.fromarray, rgb=lambda x: rgb16(np.dstack([x]*3)),
    rgba=lambda x: rgb16(np.dstack([x]*3 + [x*0+65535])), la=lambda x: rgb16(np.dstack([x, x*0+65535])))
def rgb16(x):
    "A PNG with 16 bits in each channel"
    def chunk(t, b): return struct.pack('>I', len(b)) + t + b + struct.pack('>I', zlib.crc32(t+b))
    h,w,c = x.shape
    rows = b''.join(b'\0'+row.astype('>u2').tobytes() for row in x)
    head = struct.pack('>IIBBBBB', w, h, 16, {1:0, 2:4, 3:2, 4:6}[c], 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

@pytest.mark.parametrize('form', formats)
def test_16_bits_that_are_not_filled_are_refused(tmp_path, form):
    for most in (255,1023,4095):
        x = formats[form](few(most))
        for read in (Photo.create, decode_photo):
            with pytest.raises(Exception) as e: read(x)
            assert one_line(e, 'not a readable image', 'which is white?', '8 bits')
        if isinstance(x, bytes):
            photo(tmp_path/'good.png')
            (f:=tmp_path/f'{most}.x.png').write_bytes(x)
            assert f in [o for o,_ in broken_images(tmp_path)] and len(broken_images(tmp_path))<4
    for most in (8000,65535):
        got = np.asarray(Photo.create(formats[form](few(most)))).astype(int)
        assert abs(got-(few(most)/257)[...,None]).max()<=1

@pytest.mark.parametrize('most', [255,1023,4095,16383,65535])
def test_a_tiff_may_say_what_is_white(most):
    for peak in (most, most//8):   # a dark photo, too
        x = Photo.create(with_most(tiff(few(peak), 16), most))
        assert abs(np.asarray(x).astype(int)-(few(peak)*(255/most))[...,None]).max()<=1
    with pytest.raises(Exception) as e: Photo.create(with_most(tiff(few(3000), 16), 2999))   # only how bright it got
    assert one_line(e, 'which is white?')

dark = dict(floats=f32(ramp*.3), integers=i32(ramp*180), zeros=np.zeros((16,16), np.float32))
@pytest.mark.parametrize('kind', dark)
def test_dark_photos_stay_dark(kind):
    want = dict(floats=ramp*.3*255, integers=ramp*180, zeros=ramp*0)[kind]
    assert abs(np.asarray(Photo.create(Image.fromarray(dark[kind]))).astype(int)-want[...,None]).max()<=1

wrong = dict(nan=np.where(ramp>.5, np.nan, ramp), all_nan=ramp*np.nan, infinite=np.where(ramp>.5, np.inf, ramp),
    minus_infinite=np.where(ramp>.5, -np.inf, ramp), negative=ramp-.1, overshoot=ramp*1.02, few_counts=ramp*9,
    many_counts=ramp*1000, huge=ramp*1e6)
@pytest.mark.parametrize('kind', wrong)
def test_values_that_do_not_say_what_is_white_are_named(tmp_path, kind):
    path = photo_set(tmp_path/'set')
    Image.fromarray(f32(wrong[kind])).save(f:=path/'train'/'cat'/'odd.tif')
    bad = [f]
    if kind in ('negative','few_counts','many_counts','huge'):
        Image.fromarray(i32(wrong[kind]*10 if kind=='negative' else wrong[kind])).save(g:=path/'val'/'cat'/'whole.tif')
        bad.append(g)
    for o in bad:
        for read in (Photo.create, decode_photo):
            with pytest.raises(Exception) as e: read(o)
            assert one_line(e, o, 'its values run from')
    assert [o for o,_ in broken_images(path)]==bad and all('its values run from' in r for _,r in broken_images(path))

@pytest.mark.parametrize('mode', ['LA','PA','CMYK','1','LAB','HSV','YCbCr','RGBa','La','RGBX'])
def test_modes_in_memory(mode):
    want = {'LA':77, 'La':77, '1':255}.get(mode, (200,60,20))
    if mode=='La': im = Image.new('LA', (4,4), (77,128)).convert('La')
    elif mode=='LA': im = Image.new('LA', (4,4), (77,128))
    elif mode in ('RGBa','PA'): im = Image.new('RGBA', (4,4), (200,60,20,128)).convert(mode)
    elif mode=='1': im = Image.new('1', (4,4), 1)
    else: im = Image.new('RGB', (4,4), (200,60,20)).convert(mode)
    assert abs(np.asarray(Photo.create(im))[0,0].astype(int)-want).max()<=2

@pytest.mark.parametrize('color', [(51400,), (51400,30000), (51400,15420,5140), (51400,15420,5140,30000)])
def test_16_bits_for_each_channel(color):
    want = np.array(color[:3] if len(color)>2 else color[:1]*3)/257
    assert abs(np.asarray(Photo.create(rgb16(np.array([[color]]))))[0,0]-want).max()<=1

@pytest.mark.filterwarnings('error::UserWarning')
def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    im = Image.new('RGBA', (8,8), (200,60,20,128))
    im.paste((10,200,30,0), (0,0,4,8))
    im.quantize(4).save(f:=tmp_path/'a.png')
    x = np.asarray(Photo.create(f))
    assert x[0,0].tolist()==[10,200,30] and x[0,7].tolist()==[200,60,20]

@pytest.mark.parametrize('kind', ['gif','png','webp','tiff','avif'])
def test_of_several_frames_the_first_counts(tmp_path, kind):
    frames = [Image.new('RGB', (16,16), c) for c in ((250,0,0),(0,250,0))]
    frames[0].save(f:=tmp_path/f'a.{kind}', save_all=True, append_images=frames[1:])
    for x in (Photo.create(f), decode_photo(f), Photo.create(f.read_bytes())):
        assert abs(np.asarray(x)[8,8].astype(int)-(250,0,0)).max()<8

rgb = np.stack([ramp, ramp.T, 1-ramp], 2)
bytes_ = (rgb*255).round().astype(np.uint8)
arrays = dict(uint8=bytes_, shares=f32(rgb), doubles=rgb, half=rgb.astype(np.float16), uint16=u16(rgb),
    big=u16(rgb).astype('>u2'), int64=bytes_.astype(np.int64), floats=f32(bytes_), turned=np.asfortranarray(bytes_),
    alpha=np.dstack([bytes_, np.full((16,16), 9, np.uint8)]), tensor=torch.tensor(bytes_),
    image=TensorImage(torch.tensor(bytes_).permute(2,0,1)), shares_image=TensorImage(torch.tensor(f32(rgb)).permute(2,0,1)))
@pytest.mark.parametrize('kind', arrays)
def test_arrays(kind):
    for x in (Photo.create(arrays[kind]), decode_photo(arrays[kind])):
        assert np.asarray(x).shape==(16,16,3) and abs(np.asarray(x).astype(int)-bytes_).max()<=1

@pytest.mark.parametrize('x', [ramp>.5, u16(ramp), f32(ramp), (ramp*255).round().astype(np.uint8), f32(ramp)[...,None]])
def test_grey_arrays(x):
    want = np.squeeze(x)*255. if x.dtype!=np.uint16 else x/257
    if x.dtype==np.uint8: want = x
    assert abs(np.asarray(Photo.create(x)).astype(int)-want[...,None]).max()<=1

@pytest.mark.parametrize('x, words', [(np.zeros((3,16,16,3), np.uint8), '(3, 16, 16, 3)'), (torch.zeros(3,16,16), '(3, 16, 16)'),
    (np.zeros((0,4), np.float32), 'values'), (np.zeros((4,4), complex), 'complex'), (np.array([['a']]), 'values'),
    (f32(rgb)*3, 'run from'), (None, 'NoneType'), (3, 'int')])
def test_what_is_no_picture_is_told(x, words):
    with pytest.raises(Exception) as e: Photo.create(x)
    assert one_line(e, 'not a readable image') and words in str(e.value)

@pytest.mark.parametrize('shape', [(0,0), (0,5), (5,0), (0,5,3), (5,0,3)])
@pytest.mark.parametrize('dtype', [np.uint8, bool, np.uint16, np.float32])
def test_an_array_without_pixels(shape, dtype):
    for read in (Photo.create, decode_photo):
        with pytest.raises(Exception) as e: read(np.zeros(shape, dtype))
        assert one_line(e, 'the given ndarray', '0 values')

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_every_precision(dtype):
    x = np.asarray(Photo.create(TensorImage(torch.tensor(rgb).permute(2,0,1).to(dtype)))).astype(int)
    assert abs(x-bytes_).max()<=1

@pytest.mark.parametrize('text', [b'', b'{', b'[]', b'3', b'\xff', b'{"size": 3}'])
def test_a_folder_with_an_odd_card_is_no_sample(tmp_path, text):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'sample.json').write_bytes(text)
    with pytest.raises(Exception) as e: make_sample(tmp_path/'a', 20, 20, 16)
    assert one_line(e, tmp_path/'a', 'something other')

def test_what_is_not_there_is_not_to_be_mended(tmp_path):
    (tmp_path/'dead.jpg').symlink_to(tmp_path/'nowhere')
    (tmp_path/'round.jpg').symlink_to(tmp_path/'round.jpg')
    told = {'nope.jpg':'no such file', 'dead.jpg':'leads nowhere', '.':'is a folder', 'round.jpg':'cannot be opened'}
    for (name,words),read,kind in product(told.items(), (Photo.create,decode_photo), (str,Path)):
        with pytest.raises(Exception) as e: read(kind(tmp_path/name))
        assert one_line(e, tmp_path/name, words) and not any(o in str(e.value) for o in ('repair','readable image'))

def test_a_photo_that_may_not_be_read(tmp_path, monkeypatch):
    photo(f:=tmp_path/'a.png')
    def denied(*args): raise PermissionError(errno.EACCES, 'Permission denied', str(f))
    monkeypatch.setattr(Image, 'open', denied)
    with pytest.raises(Exception) as e: Photo.create(f)
    assert one_line(e, f, 'cannot be opened (Permission denied)')
    assert broken_images(tmp_path)==[(f,'Permission denied')]

# --- which files are photos -------------------------------------------------------------------------------------
@pytest.fixture
def slim(monkeypatch):
    "A machine without a table of file types"
    for o in (fastai.data.transforms, photos, data): monkeypatch.setattr(o, 'image_extensions', {'.bmp'}, raising=False)

def suffix_set(path, suffix):
    path = photo_set(path, n=2)
    for f in [*path.rglob('*.jpg')]: f.rename(f.with_suffix(suffix))
    return path

@pytest.mark.parametrize('suffix', ['.webp','.JPEG','.avif','.jp2','.TIF'])
def test_photos_are_the_same_on_every_machine(tmp_path, slim, suffix):
    path = suffix_set(tmp_path/'set', suffix)
    jpgs = suffix_set(tmp_path/'again'/'set', suffix)
    photo(path/'train'/'cat'/f'more{suffix}', format='PNG')
    assert len(photos_by_class(path)['train']['cat'])==3 and fingerprint(path)!=fingerprint(jpgs)
    assert run_settings(path)['bs']==5 and len(load_arrays(path)[0])==5 and broken_images(path)==[]
    assert get_data(path, 32, 32, 4).train.n==cached_data(path, 32, 32, 4, cache=False).train.n==5

def test_every_common_suffix_is_a_photo(tmp_path):
    Image.init()
    common = {'JPEG','PNG','GIF','BMP','WEBP','TIFF','PPM','JPEG2000','AVIF','MPO','ICO','TGA','QOI','PCX','PSD'}
    rare = {'.jpc','.j2c','.pfm','.icb','.vda','.vst'}
    assert {s for s,k in Image.EXTENSION.items() if k in common and k in Image.OPEN}-rare <= photo_suffixes

def test_a_fingerprint_stays_what_it_was(tmp_path):
    "Records hold them"
    files = 'train/a/1.jpg train/b/2.JPEG val/a/3.png val/b/4.gz train/b.c/5.tif test/x/6.jpeg train/a/7.txt .h/8.jpg'
    for i,o in enumerate(files.split()):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).write_bytes(bytes([i])*i)
    assert fingerprint(tmp_path)==fingerprint(str(tmp_path))=='f00f376b47ff156e'
    assert fingerprint(tmp_path/'train')=='eeaece3f535574cf' and fingerprint(tmp_path/'val'/'b'/'4.gz')=='0f5ce70b7b261aed'

def test_photos_in_no_class_are_told(tmp_path, capsys):
    path = photo_set(tmp_path/'set')
    photo(path/'train'/'loose.jpg')
    assert len(photos_by_class(path)['train'])==2
    out = capsys.readouterr().out
    assert '1 photo is left out' in out and str(path/'train'/'loose.jpg') in out and out.count('\n')==1

def test_files_that_are_no_photos_are_told(tmp_path, capsys):
    path = photo_set(tmp_path/'set')
    for o in ('1.dng','2.dng'): (path/'train'/'cat'/o).write_text('x')
    photos_by_class(path)
    out = capsys.readouterr().out
    assert out.count('\n')==1 and '2 files' in out and 'left out' in out and str(path/'train'/'cat') in out

# --- what cannot be listed --------------------------------------------------------------------------------------
def locked(monkeypatch, folder):
    "As root would not be kept out, the system's answer is given for it"
    scandir = os.scandir
    def denied(path):
        if Path(path)==folder: raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', denied)

readers = dict(photos_by_class=photos_by_class, get_data=lambda p: get_data(p, 32, 32, 4), fingerprint=fingerprint,
    load_arrays=load_arrays, cached_data=lambda p: cached_data(p, 32, 32, 4, cache=False))
places = ['train/emu','val/cat','train','val','','train/emu/deep']
@pytest.mark.parametrize('where, read', [(o,read) for o in places for read in readers
                                         if o or read!='fingerprint'])   # which looks into the splits alone
def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch, where, read):
    path = photo_set(tmp_path/'set', ('cat','dog','emu'))
    (path/'train'/'emu'/'deep').mkdir()
    locked(monkeypatch, path/where)
    with pytest.raises(Exception) as e: readers[read](path)
    assert one_line(e, path/where, 'Permission denied', 'make it readable')
    if read=='photos_by_class': assert [(f,r) for f,r in broken_images(path)]==[(path/where,'Permission denied')]

def test_a_folder_that_may_be_listed_and_not_entered(tmp_path, monkeypatch):
    path = photo_set(tmp_path/'set')
    access = os.access
    monkeypatch.setattr(os, 'access', lambda p, mode: Path(p)!=path/'train'/'dog' and access(p, mode))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'train'/'dog', 'Permission denied')

@pytest.mark.parametrize('read', [*readers, 'run_settings', 'course_path'])
def test_a_data_folder_that_may_not_be_entered(tmp_path, monkeypatch, read):
    "Its names may be listed, and none of them looked at"
    path,access,stat = photo_set(tmp_path/'set'),os.access,os.stat
    def looked_at(p, *args, **kwargs):
        if not isinstance(p, int) and path in Path(p).parents: raise PermissionError(errno.EACCES, 'Permission denied', str(p))
        return stat(p, *args, **kwargs)
    monkeypatch.setattr(os, 'access', lambda p, mode: Path(p)!=path and access(p, mode))
    monkeypatch.setattr(os, 'stat', looked_at)
    with pytest.raises(Exception) as e: {**readers, 'run_settings':run_settings, 'course_path':course_path}[read](path)
    assert one_line(e, path, 'Permission denied', 'make it readable')

@pytest.mark.parametrize('error, words', [(MemoryError(), 'no memory'), (OSError(12, 'Cannot allocate memory'), 'no memory'),
    (OSError(24, 'Too many open files'), 'ulimit'), (OSError(23, 'Too many open files in system'), 'ulimit')])
def test_the_machines_fault_is_not_the_photos(tmp_path, monkeypatch, error, words):
    f = photo(tmp_path/'a.png')
    def fail(*args): raise error
    monkeypatch.setattr(Image, 'open', fail)
    for read in (Photo.create, decode_photo):
        with pytest.raises(Exception) as e: read(f)
        assert one_line(e, f, words) and not any(o in str(e.value) for o in ('repair','remove','not a readable'))
    with pytest.raises(Exception) as e: Photo.create(b'x')
    if isinstance(error, MemoryError): assert one_line(e, 'no memory', 'the given bytes')

@pytest.mark.parametrize('name', ['~nobody-of-this-name/x', 'a\0b', 'a\ud800b', '~nobody-of-this-name'])
def test_a_name_that_is_no_path(monkeypatch, name):
    def of_signs(name):
        monkeypatch.setattr(os, 'environ', {**os.environ, 'RESNET_COURSE_SIGNS':name})
        return course_path('signs')
    for read in (course_path, photos_by_class, of_signs):
        with pytest.raises(Exception) as e: read(name)
        assert one_line(e) and ('path' in str(e.value) or 'no such folder' in str(e.value) or 'opened' in str(e.value))

def test_the_variable_may_name_a_small_set(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(photo_set(tmp_path/'small')))
    monkeypatch.setenv('RESNET_COURSE_DATA', 'cifar10')
    assert course_path()==course_path('imagenette')==course_path('cifar10')==tmp_path/'small'

def test_a_zip_in_capitals(tmp_path):
    path = photo_set(tmp_path/'set')
    f = Path(shutil.make_archive(tmp_path/'a', 'zip', path)).rename(tmp_path/'A.ZIP')
    assert course_path(f)==f and data_name(f)=='A' and len(load_arrays(f)[0])==8

def test_no_semaphores_are_told(monkeypatch, capsys):
    monkeypatch.setattr(data, 'shared_memory', lambda: 0)
    assert n_workers(10_000)==0
    assert 'semaphores' in capsys.readouterr().out

@pytest.mark.parametrize('link', ['train/emu','val/cat/9.jpg','train/cat/9','val/dog/deep/9.jpg'])
@pytest.mark.parametrize('target', ['nowhere','itself'])
@pytest.mark.parametrize('read', readers)
def test_a_link_that_leads_nowhere_is_named(tmp_path, link, target, read):
    path = photo_set(tmp_path/'set')
    (path/link).parent.mkdir(exist_ok=True)
    (path/link).symlink_to(tmp_path/'gone' if target=='nowhere' else path/link)
    with pytest.raises(Exception) as e: readers[read](path)
    assert one_line(e, path/link)
    assert [f for f,_ in broken_images(path)]==[path/link]

@pytest.mark.parametrize('split', ['train','val'])
def test_a_split_that_is_a_dead_link_or_a_file(tmp_path, split):
    path = photo_set(tmp_path/'set')
    shutil.rmtree(path/split)
    (path/split).symlink_to(tmp_path/'gone')
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/split, 'leads nowhere')
    (path/split).unlink(); (path/split).write_text('x')
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/split, 'is a file')

@pytest.mark.parametrize('link, to', [('train/cat/up','train'), ('train/cat/up',''), ('train/up',''), ('val/dog/self','val/dog'),
                                      ('train/dog/out','..'), ('train/cat/other','val/cat/other')])
def test_links_that_go_round_bring_nothing(tmp_path, capsys, link, to):
    path = photo_set(tmp_path/'set')
    before = photos_by_class(path),fingerprint(path)
    (path/link).symlink_to(path/to, target_is_directory=True)
    if link.endswith('other'): (path/to).symlink_to(path/'train'/'cat')   # round by way of each other
    after = photos_by_class(path)
    assert after==before[0] and 'deep' not in capsys.readouterr().out
    if not link.endswith('other'): assert fingerprint(path)==before[1]
    assert get_data(path, 32, 32, 4).train.n==8

def test_links_to_photos_and_folders_are_followed(tmp_path):
    away,path = photo_set(tmp_path/'away', ('cat','dog','emu')),photo_set(tmp_path/'set')
    (path/'train'/'emu').symlink_to(away/'train'/'emu')
    (path/'train'/'cat'/'more.jpg').symlink_to(away/'train'/'cat'/'0.jpg')
    assert {c:len(o) for c,o in photos_by_class(path)['train'].items()}==dict(cat=5, dog=4, emu=4)

# --- classes ----------------------------------------------------------------------------------------------------
def emptied(path, c, split='train'):
    for f in (path/split/c).iterdir(): f.unlink()

@pytest.mark.parametrize('left', ['', 'notes.txt', 'deep/1.jpg'])
def test_a_class_without_photos_is_told(tmp_path, capsys, left):
    path = photo_set(tmp_path/'set', ('cat','dog','emu'), ('cat','dog','emu'))
    emptied(path, 'emu')
    if left: (path/'train'/'emu'/left).parent.mkdir(exist_ok=True); (path/'train'/'emu'/left).write_text('x')
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'train'/'emu', 'holds no photos', path/'val'/'emu') and 'no folder' not in str(e.value)
    emptied(path, 'emu', 'val')
    assert list(photos_by_class(path)['train'])==['cat','dog']
    assert f"{path/'train'/'emu'} holds no photos" in capsys.readouterr().out

def nfd(s): return unicodedata.normalize('NFD', s)
@pytest.mark.parametrize('name', ['Bär','café','한국','Å'])
def test_two_spellings_are_one_class(tmp_path, name):
    name = unicodedata.normalize('NFC', name)
    path = photo_set(tmp_path/'set', (name,'Katze'), (nfd(name),'Katze'))
    photo(path/'train'/nfd(name)/'9.jpg')
    other = photo_set(tmp_path/'other', (nfd(name),'Katze'), (name,'Katze'))
    photo(other/'train'/nfd(name)/'9.jpg')
    found = photos_by_class(path)
    assert {k:len(v) for k,v in found['train'].items()}=={name:5, 'Katze':4} and len(found['val'][name])==4
    for load in (get_data, partial(cached_data, cache=False), partial(cached_chapter_data, cache=False)):
        dls = load(path, 32, 32, 4)
        assert sorted(dls.vocab)==sorted((name,'Katze'))
        assert torch.cat([y for _,y in dls.valid]).bincount().tolist()==[4,4]
    for o in (path, shutil.make_archive(tmp_path/'z', 'zip', path)): assert load_arrays(o)[-1]==sorted((name,'Katze'))
    assert fingerprint(path)==fingerprint(other)

@pytest.mark.parametrize('train, val', [('cat','Cat'), ('cat','cat '), ('hot dog','hot  dog'), ('cat','c\u0430t'),
                                        ('golf ball','golf_ball'), ('cat','cat\u200b')])
def test_names_that_look_alike_are_told_apart(tmp_path, train, val):
    path = photo_set(tmp_path/'set', (train,'xyz'), (val,'xyz'))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'val', ascii(train), ascii(val), 'rename')

@pytest.mark.parametrize('other', ['cat ', ' cat', 'cat\u200b', 'cat\u00a0'])
def test_names_of_one_split_that_look_the_same_are_refused(tmp_path, other):
    path = photo_set(tmp_path/'set', ('cat','dog',other), ('cat','dog'))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'train', ascii('cat'), ascii(other), 'look the same')

unseen = ['\u200b', '\xad', '\u034f', '\ufe0f', '\U000e0101', '\u3164', '\u115f', '\uffa0', '\u2800', '\x01', '\x7f', '\u2060', '\u3000']
@pytest.mark.parametrize('o', unseen, ids=ascii)
def test_what_is_not_seen_makes_no_class(tmp_path, o):
    path = photo_set(tmp_path/'a', ('cat','dog',f'cat{o}'), ('cat','dog'))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'train', ascii('cat'), ascii(f'cat{o}'), 'look the same')
    path = photo_set(tmp_path/'b', ('cat','dog'), ('cat','dog',f'{o}cat'))   # which class is it?
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'val', ascii('cat'), ascii(f'{o}cat'), 'rename')

@pytest.mark.parametrize('a, b', [('\u212b','\xc5'), ('co\u2126l','co\u03a9l')], ids=ascii)
def test_two_codes_that_unicode_takes_for_one(tmp_path, a, b):
    "In NFC they are one class"
    assert {*photos_by_class(photo_set(tmp_path/'set', (a,'x'), (b,'x')))['train']}=={b,'x'}

@pytest.mark.parametrize('a, b', [('\uff23at','Cat'), ('\ufb01sh','fish'), ('a\u2003b','a b')], ids=ascii)
def test_two_codes_of_one_letter(tmp_path, a, b):
    for train,val,where in (((a,b),(a,b),'train'), ((a,'x'),(a,'x',b),'val')):
        path = photo_set(tmp_path/where, train, val)
        with pytest.raises(Exception) as e: photos_by_class(path)
        assert one_line(e, path/where, ascii(a), ascii(b), 'rename')

@pytest.mark.parametrize('a, b', [('DOG','dog'), ('STRASSE','stra\xdfe'), ('GOLF BALL','golf ball')])
def test_capitals_that_differ(tmp_path, a, b):
    path = photo_set(tmp_path/'set', (a,'xyz'), (b,'xyz'))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, path/'val', ascii(a), ascii(b), 'rename')

def test_a_class_of_val_alone_is_told_by_its_codes(tmp_path):
    path = photo_set(tmp_path/'set', ('cat','dog'), ('cat','dog','\u043a\u043e\u0442'))
    with pytest.raises(Exception) as e: photos_by_class(path)
    assert one_line(e, ascii('\u043a\u043e\u0442')[1:-1], 'no folder in train')

def test_letters_may_be_classes(tmp_path):
    assert list(photos_by_class(photo_set(tmp_path/'set', 'aAbB', 'aAbB'))['train'])==['A','B','a','b']

# --- a file in place of a folder, text in place of a path -------------------------------------------------------
def zipped(path, to): return Path(shutil.make_archive(to, 'zip', path))
def tarred(path, to): return Path(shutil.make_archive(to, 'gztar', path))
def seven(path, to): (f:=Path(f'{to}.7z')).write_bytes(b"7z\xbc\xaf'\x1c"); return f
def picture(path, to): return photo(Path(f'{to}.jpg'))
@pytest.mark.parametrize('make', [zipped, tarred, seven, picture])
def test_a_file_is_not_a_folder(tmp_path, make):
    f = make(photo_set(tmp_path/'set'), tmp_path/'a')
    for read in (photos_by_class, lambda p: get_data(p, 32, 32, 4), lambda p: cached_data(p, cache=False), course_path):
        if make is zipped and read is course_path: continue   # `load_arrays` reads these
        with pytest.raises(Exception) as e: read(f)
        assert one_line(e, f, 'is a file', 'unpack it') and 'no such' not in str(e.value)
    if make is not zipped:
        with pytest.raises(Exception) as e: load_arrays(f)
        assert one_line(e, f, 'zip', 'unpack it')

def test_what_is_not_there(tmp_path):
    for none in (tmp_path/'none', str(tmp_path/'none')):
        for read in readers.values():
            with pytest.raises(Exception) as e: read(none)
            assert one_line(e, none, 'no such folder')
        assert broken_images(none)==[(tmp_path/'none','No such file or directory')]

def test_paths_may_be_texts(drawn):
    p = str(drawn)
    for f in (photos_by_class, fingerprint, broken_images, data_name, sample_card, run_settings, photo_files, course_path):
        assert f(p)==f(drawn)
    assert sample_card(p)['size']==32 and class_of(f'{p}/train/ring/1.jpg')=='ring'
    assert all((a==b) if isinstance(a, list) else (a==b).all() for a,b in zip(load_arrays(p), load_arrays(drawn)))
    for load in (get_data, partial(cached_data, cache=False), partial(cached_chapter_data, cache=False)):
        assert load(p, 32, 32, 16).c==10

# --- batches that batch norm can use ----------------------------------------------------------------------------
makers = dict(get_data=lambda p, bs: get_data(p, 32, 32, bs), cached_data=lambda p, bs: cached_data(p, 32, 32, bs, cache=False),
    cached_chapter_data=lambda p, bs: cached_chapter_data(p, 32, 32, bs, cache=False),
    array_dls=lambda p, bs: array_dls(load_arrays(p), p, bs))
@pytest.mark.parametrize('make', makers)
def test_a_batch_of_one_is_refused_before_training(tmp_path, make):
    path = photo_set(tmp_path/'set')
    for bs in (1,0,-3,2.5):
        with pytest.raises(Exception) as e: makers[make](path, bs)
        assert one_line(e, f'a batch of {bs}', '2 photos or more')
    photo(path/'train'/'cat'/'9.jpg')   # nine photos
    for bs in (2,4,8): assert {len(y) for _,y in makers[make](path, bs).train}=={bs}
    check_batch(np.int64(2))

sized = dict(get_data=get_data, cached_data=partial(cached_data, cache='cache'), plain=partial(cached_data, cache=False),
    chapter=partial(cached_chapter_data, cache='cache'))
@pytest.mark.parametrize('make', sized)
def test_sizes_of_every_whole_kind(tmp_path, capsys, make):
    path = photo_set(tmp_path/'set')
    for kind in (np.int64, np.uint8, np.array, torch.tensor):
        dls = sized[make](path, kind(32), kind(24), kind(4))
        assert dls.one_batch()[0].shape==(4,3,24,24) and len(dls.valid.one_batch()[0])==8
    assert 'No cache' not in capsys.readouterr().out

@pytest.mark.parametrize('make', sized)
@pytest.mark.parametrize('wrong', [0, -1, 8., '8', None, True, np.float32(8), np.array([8,8]), float('nan'), [8]])
def test_a_size_that_is_none_is_refused_before_a_photo_is_read(tmp_path, monkeypatch, make, wrong):
    path = photo_set(tmp_path/'set')
    monkeypatch.setattr(Image, 'open', lambda *_: 1/0)
    for sizes,words in (((wrong,24,4), 'presize='), ((32,wrong,4), 'resize='), ((32,24,wrong), 'a batch of')):
        with pytest.raises(Exception) as e: sized[make](path, *sizes)
        assert one_line(e, words, repr(wrong), 'whole number')

def test_a_sample_of_numpy_sizes(tmp_path):
    assert sample_card(make_sample(tmp_path/'a', *map(np.int64, (20,20,16,1))))==dict(n_train=20, n_val=20, size=16, seed=1)
    for wrong in ((-1,20,16,1), (20,20,0,1), (20,2.5,16,1), (20,20,16,'1')):
        with pytest.raises(Exception) as e: make_sample(tmp_path/'b', *wrong)
        assert one_line(e, 'whole number') and not (tmp_path/'b').exists()

def test_a_set_of_one_picture_is_refused(drawn):
    x,y,xv,yv,vocab = load_arrays(drawn)
    with pytest.raises(Exception) as e: array_dls((x[:1],y[:1],xv,yv,vocab), drawn)
    assert one_line(e, 'a batch of 1')

# --- places without shared memory -------------------------------------------------------------------------------
class NoPool:
    def __init__(self, *args): raise self.error
class NoSubmit:
    def __init__(self, *args): pass
    def __enter__(self): return self
    def __exit__(self, *args): pass
    def submit(self, *args): raise self.error

@pytest.mark.parametrize('pool', [NoPool,NoSubmit])
@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), OSError(38, 'Function not implemented'),
    OSError(28, 'No space left on device'), FileNotFoundError(2, 'No such file'),
    BlockingIOError(11, 'Resource temporarily unavailable'), NotImplementedError(), ImportError(),
    RuntimeError("can't start new thread")], ids=repr)
def test_the_sample_is_drawn_where_processes_cannot_start(tmp_path, monkeypatch, pool, error):
    want = fingerprint(make_sample(tmp_path/'a', 20, 10, 32))
    monkeypatch.setattr(sample, 'ProcessPoolExecutor', type('Pool', (pool,), dict(error=error)))
    assert fingerprint(make_sample(tmp_path/'b', 20, 10, 32))==want

def test_a_drawing_process_that_dies(tmp_path, monkeypatch):
    want = fingerprint(make_sample(tmp_path/'a', 20, 10, 32))
    me,draw = os.getpid(),sample.draw_image
    def dies(*args): return draw(*args) if os.getpid()==me else os._exit(9)
    monkeypatch.setattr(sample, 'draw_image', dies)
    assert fingerprint(make_sample(tmp_path/'b', 20, 10, 32))==want

mb = 10**6
@pytest.mark.parametrize('free, batch, workers', [(math.inf, 10*mb, 8), (10**12, 10*mb, 8), (64*mb, 10*mb, 2), (64*mb, 3*mb, 8),
    (39*mb, 10*mb, 0), (40*mb, 10*mb, 1), (2*mb, 10*mb, 0), (0, 1, 0), (0, 10*mb, 0)])
def test_workers_fit_into_shared_memory(monkeypatch, capsys, free, batch, workers):
    "Each keeps two batches ready, and two more are on the way"
    monkeypatch.setattr(data, 'shared_memory', lambda: free)
    monkeypatch.setattr(data, 'num_cpus', lambda: 16)
    assert n_workers(4000, batch)==workers and (workers*2+2)*batch<=max(free, 2*batch)
    out = capsys.readouterr().out
    assert ('/dev/shm' in out and '--shm-size' in out and out.count('\n')==1) if workers<8 else not out
    assert n_workers(3999, batch)==0

def test_get_data_asks_for_what_its_batches_need(tmp_path, monkeypatch):
    path,asked = photo_set(tmp_path/'set', n=40),[]
    monkeypatch.setattr(data, 'n_workers', lambda *args: asked.append(args) or 0)
    for bs in (4,72): get_data(path, 40, 32, bs)
    assert asked==[(160, 3*40*40*64), (160, 3*40*40*72)]   # a batch of validation has 64 or more

def test_shared_memory(monkeypatch):
    usage = types.SimpleNamespace(free=123)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: usage if p=='/dev/shm' else None)
    monkeypatch.setattr(sys, 'platform', 'linux')
    assert shared_memory()==123
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert shared_memory()==math.inf
    for e in (PermissionError(13, 'x'), OSError(38, 'x'), ImportError()):
        def fail(): raise e
        monkeypatch.setattr(kit_files.multiprocessing, 'Lock', fail)
        assert shared_memory()==0

# --- a fingerprint is taken once --------------------------------------------------------------------------------
@pytest.fixture
def later(monkeypatch):
    "A minute has passed since the files were written"
    now = time.time_ns
    monkeypatch.setattr(photos.time, 'time_ns', lambda: now()+60*10**9)
    photos._hash_of.cache_clear()

def reads(monkeypatch):
    got,real = [],photos.open_file
    monkeypatch.setattr(photos, 'open_file', lambda f: got.append(f) or real(f))
    return got

def test_each_photo_is_read_once(tmp_path, monkeypatch, later):
    path,got = photo_set(tmp_path/'set'),reads(monkeypatch)
    first = fingerprint(path)
    assert len(got)==16 and fingerprint(path)==fingerprint(str(path))==first and len(got)==16

def change(f): f.write_bytes(f.read_bytes()+b'x')
def one_bit(f): b = bytearray(f.read_bytes()); b[-1] ^= 1; f.write_bytes(b)
def behind(f): s = f.stat(); one_bit(f); os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))
def replaced(f):
    g = f.with_suffix('.new')
    shutil.copy2(f, g)
    behind(g)
    os.replace(g, f)
def removed(f): f.unlink()
def renamed(f): f.rename(f.with_name('z.jpg'))
@pytest.mark.parametrize('how', [change, one_bit, behind, replaced, removed, renamed])
@pytest.mark.parametrize('kept', [False,True])
def test_no_change_is_overlooked(tmp_path, request, how, kept):
    if kept: request.getfixturevalue('later')
    path = photo_set(tmp_path/'set')
    before = fingerprint(path)
    how(path/'train'/'cat'/'1.jpg')
    assert fingerprint(path)!=before

def test_no_change_is_overlooked_where_clocks_are_coarse(tmp_path, monkeypatch):
    "Two changes of one tick look the same to whoever asks for the date"
    path,stat = photo_set(tmp_path/'set'),os.stat
    def coarse(f, **kwargs):
        s = stat(f, **kwargs)
        if not str(f).endswith('.jpg'): return s
        return types.SimpleNamespace(st_mode=s.st_mode, st_size=s.st_size, st_ino=s.st_ino, st_mtime_ns=tick, st_ctime_ns=tick)
    tick = time.time_ns()//10**9*10**9
    seen = []
    monkeypatch.setattr(photos.os, 'stat', coarse)
    for i in range(3): one_bit(path/'train'/'cat'/f'{i}.jpg'); seen.append(fingerprint(path))
    assert len(set(seen))==3

def test_a_photo_that_goes_while_it_is_read_is_told(tmp_path, monkeypatch):
    path = photo_set(tmp_path/'set')
    def gone(f, *args): raise FileNotFoundError(2, 'No such file or directory', f)
    monkeypatch.setattr(photos, 'open_file', gone)
    with pytest.raises(Exception) as e: fingerprint(path)
    assert one_line(e, path/'train'/'cat'/'0.jpg', 'no such file')
