"What comes from a network is whole, or is not there; a server and an archive may be anything"
import gzip, hashlib, io, tarfile, threading, time
from contextlib import suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from fastai.vision.all import *
from resnet_course import data
from resnet_course.kit import arrays, download
from resnet_course.kit.arrays import load_arrays
from resnet_course.kit.download import fastai_folder, fetch, unpack
from resnet_course.kit.files import CourseError
from resnet_course.kit.photos import photo_files
from resnet_course.data import course_path
from conftest import one_line

@pytest.fixture
def served():
    "The address of a server on this machine that answers with what is put under a name: bytes, or a function of the request"
    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            with suppress(OSError):   # the other side has given up
                o = there.get(self.path[1:])
                if callable(o): return o(self)
                self.send_response(200 if o else 404)
                self.send_header('Content-Length', str(len(o or b'')))
                self.end_headers()
                self.wfile.write(o or b'')
    there,server = {},ThreadingHTTPServer(('127.0.0.1',0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/',there
    server.shutdown()
    server.server_close()

def head(r, code=200, **headers):
    r.send_response(code)
    for k,v in headers.items(): r.send_header(k.replace('_','-'), v)
    r.end_headers()

def silent(r): time.sleep(60)
def stalls(r): head(r, Content_Length='1000'); r.wfile.write(b'x'*10); time.sleep(60)
def trickles(r):
    head(r, Content_Length='1000')
    for _ in range(60): r.wfile.write(b'x'); r.wfile.flush(); time.sleep(.05)
def cut_off(r): head(r, Content_Length='1000'); r.wfile.write(b'x'*400)
def in_chunks_cut_off(r):
    r.protocol_version = 'HTTP/1.1'
    head(r, Transfer_Encoding='chunked'); r.wfile.write(b'a\r\n0123456789\r\nff\r\n')
def no_length(r): head(r, Content_Length='many'); r.wfile.write(b'x')
def page(r): head(r, Content_Type='text/html; charset=utf-8'); r.wfile.write(b'<html>please log in</html>')
def not_there(r): head(r, 404)
def broken(r): head(r, 500)
def round_and_round(r): head(r, 302, Location=r.path)
def farther_and_farther(r): head(r, 302, Location=r.path+'1')
def elsewhere(r): head(r, 302, Location='file:///etc/passwd')
def no_http(r): r.wfile.write(b'SSH-2.0-OpenSSH\r\n')
def endless(r):
    head(r)
    while True: r.wfile.write(bytes(2**16))

def within(seconds, f):
    "`f` in a thread, for no longer"
    def run():
        try: res.append(f())
        except Exception as e: res.append(e)
    res,t = [],threading.Thread(target=run, daemon=True)
    t.start()
    t.join(seconds)
    assert res, 'it waits'
    return res[0]

@pytest.mark.faults('a server misbehaves')
@pytest.mark.parametrize('how', [silent,stalls,trickles,cut_off,in_chunks_cut_off,no_length,page,not_there,broken,round_and_round,
                                 farther_and_farther,elsewhere,no_http,endless], ids=lambda f: f.__name__)
def test_a_server_that_misbehaves(served, tmp_path, monkeypatch, how):
    url,there = served
    there['a.tgz'] = how
    for i in range(20): there['a.tgz'+'1'*i] = how
    monkeypatch.setattr(download, '_most_bytes', 10**7)
    e = within(30, lambda: fetch(url+'a.tgz', tmp_path/'in'/'a.tgz', wait=.5))
    assert isinstance(e, CourseError) and str(e).startswith(f'{url}a.tgz could not be downloaded (') and '\n' not in str(e)
    assert {endless:'it has more than', trickles:'too slow'}.get(how, '') in str(e)   # and not a full disk, or its end
    assert not list(tmp_path.rglob('*.*'))

def test_what_is_there_is_not_fetched(served, tmp_path):
    (tmp_path/'a').write_bytes(b'mine')
    fetch(served[0]+'a', tmp_path/'a')
    assert (tmp_path/'a').read_bytes()==b'mine'
    served[1]['b'] = b'yours'*100
    fetch(served[0]+'b', tmp_path/'b')
    assert (tmp_path/'b').read_bytes()==b'yours'*100

# --- archives ---------------------------------------------------------------------------------------------------
def tgz(file, *members, top='imagenette2-160/'):
    "An archive of these (name, bytes) or `TarInfo`s"
    with tarfile.open(file, 'w:gz') as tar:
        for o in members:
            if not isinstance(o, tarfile.TarInfo):
                name,b = o
                o = tarfile.TarInfo(top+name)
                o.size = len(b)
                tar.addfile(o, io.BytesIO(b))
            else: tar.addfile(o)
    return file

def special(kind, name='imagenette2-160/a', linkname=''):
    o = tarfile.TarInfo(name)
    o.type,o.linkname = kind,linkname
    return o

def cut(f): f.write_bytes(f.read_bytes()[:-100])
def last_byte(f): b = bytearray(f.read_bytes()); b[-6] ^= 1; f.write_bytes(b)   # of the checksum
def a_page(f): f.write_text('<html>')
def empty(f): f.write_bytes(b'')
def not_zipped(f): f.write_bytes(gzip.decompress(f.read_bytes()))
def zipped_text(f): f.write_bytes(gzip.compress(b'text'*1000))
def climbs(f): tgz(f, ('../../out.jpg', b'x'))
def absolute(f): tgz(f, special(tarfile.SYMTYPE, linkname='/etc'))
def leads_out(f): tgz(f, special(tarfile.SYMTYPE, linkname='../../..'))
def hard(f): tgz(f, special(tarfile.LNKTYPE, linkname='/etc/passwd'))
def a_device(f): tgz(f, special(tarfile.CHRTYPE))
def a_pipe(f): tgz(f, special(tarfile.FIFOTYPE))
def much(f): tgz(f, ('a.jpg', bytes(10**6)))
def many(f): tgz(f, *((str(i), b'') for i in range(50)))
@pytest.mark.faults('an archive is not what it should be')
@pytest.mark.parametrize('spoil', [cut,last_byte,a_page,empty,not_zipped,zipped_text,climbs,absolute,leads_out,hard,a_device,
                                   a_pipe,much,many], ids=lambda f: f.__name__)
def test_an_archive_that_is_none(tmp_path, monkeypatch, spoil):
    file = tgz(tmp_path/'a.tgz', *((f'{i}.jpg', bytes(100)) for i in range(12)))
    spoil(file)
    monkeypatch.setattr(download, '_most_bytes', 5*10**5)
    with pytest.raises(Exception) as e: unpack(file, tmp_path/'data'/'set', lambda p: None)
    assert one_line(e, file, 'not a complete archive', 'delete it')
    assert tmp_path.ls()==[tmp_path/'a.tgz'] or set(tmp_path.ls())=={file,tmp_path/'data'} and not (tmp_path/'data').ls()

def test_rights_and_owners_of_an_archive_count_for_nothing(tmp_path):
    o = tarfile.TarInfo('set/a.jpg')
    o.mode,o.uid = 0o4777,4711
    f = unpack(tgz(tmp_path/'a.tgz', o), tmp_path/'set', lambda p: None)/'a.jpg'
    assert f.stat().st_mode&0o7022==0 and f.stat().st_uid==os.getuid()

def test_two_that_unpack(tmp_path):
    file = tgz(tmp_path/'a.tgz', ('a.jpg', b'x'))
    def slow(path): unpack(file, tmp_path/'set', lambda p: None)   # meanwhile another is first
    assert unpack(file, tmp_path/'set', slow).ls()==[tmp_path/'set'/'a.jpg'] and len(tmp_path.ls())==2

# --- the sets by name -------------------------------------------------------------------------------------------
@pytest.fixture
def kept(served, tmp_path, monkeypatch):
    "The server, fastai's folder, and the sets at the server's address; 12 photos are all of Imagenette"
    url,there = served
    for k in ('IMAGENETTE_160','IMAGENETTE_320','IMAGENETTE','CIFAR'):
        monkeypatch.setattr(URLs, k, url+getattr(URLs, k).rpartition('/')[2])
    monkeypatch.setattr(data, 'fastai_folder', lambda kind: tmp_path/kind)
    monkeypatch.setattr(data, '_imagenette', (12,"Imagenette's"))
    return there,tmp_path

@pytest.mark.faults('an archive is not what it should be')
@pytest.mark.parametrize('name, file', [('imagenette','imagenette2-160.tgz'), ('cifar10','cifar10.tgz')])
def test_too_few_photos(kept, tmp_path, monkeypatch, name, file):
    there,home = kept
    if name=='imagenette': monkeypatch.setattr(data, '_imagenette', (13394,"Imagenette's"))
    there[file] = tgz(tmp_path/'made', *((f'train/a/{i}.JPEG', b'x') for i in range(12))).read_bytes()
    for _ in range(2):   # nothing that is not whole is taken for the set the next time
        with pytest.raises(Exception) as e: course_path(name)
        assert one_line(e, home/'archive'/file, 'holds 12 of', 'delete it') and (home/'data').ls()==[]

def test_imagenette_is_fetched_once(kept, tmp_path):
    there,home = kept
    there['imagenette2-160.tgz'] = tgz(tmp_path/'made', *((f'train/a/{i}.JPEG', b'x') for i in range(12))).read_bytes()
    for _ in range(2):
        assert course_path('imagenette')==home/'data'/'imagenette2-160' and len(photo_files(home/'data'))==12
        there.clear()
    shutil.rmtree(home/'data')
    assert course_path('imagenette') and len(photo_files(home/'data'))==12   # from the archive
    shutil.rmtree(home/'data')
    last_byte(home/'archive'/'imagenette2-160.tgz')
    with pytest.raises(Exception) as e: course_path('imagenette')
    assert one_line(e, home/'archive'/'imagenette2-160.tgz', 'delete it')

def test_no_server(kept):
    with pytest.raises(Exception) as e: course_path('imagenette')
    assert one_line(e, 'HTTPError', '404', 'RESNET_COURSE_DATA=sample')

def test_fashion_is_fetched(kept, served, monkeypatch, tmp_path):
    there,home = kept
    def ubyte(*shape): return gzip.compress(bytes([0,0,8,len(shape)]) + b''.join(o.to_bytes(4,'big') for o in shape) + bytes(int(np.prod(shape))))
    files = {f'{s}-{o}-ubyte.gz': ubyte(*shape) for s in ('train','t10k') for o,shape in (('images-idx3',(3,4,5)), ('labels-idx1',(3,)))}
    there.update(files)
    monkeypatch.delenv('RESNET_COURSE_FASHION', raising=False)
    monkeypatch.setattr(data, '_debian_fashion', tmp_path/'none')
    monkeypatch.setattr(data.FashionMNIST, 'mirrors', [served[0]])
    monkeypatch.setattr(data.FashionMNIST, 'resources', [(k, hashlib.md5(v).hexdigest()) for k,v in files.items()])
    for _ in range(2):
        assert [len(o) for o in load_arrays(course_path('fashion'))]==[3,3,3,3,10]
        there.clear()
    (bad:=home/'data/fashion-mnist/FashionMNIST/raw/t10k-labels-idx1-ubyte.gz').write_bytes(files['train-labels-idx1-ubyte.gz']+b'x')
    with pytest.raises(Exception) as e: course_path('fashion')
    assert one_line(e, bad, 'delete it')

@pytest.mark.faults('an archive is not what it should be')
def test_a_small_file_that_unpacks_to_much(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, '_most_bytes', 10**6)
    for o in ('images-idx3','labels-idx1'):
        for s in ('train','t10k'): (tmp_path/f'{s}-{o}-ubyte.gz').write_bytes(gzip.compress(b'\0\0\x08\1\0\x0f\x42\x40'+bytes(2*10**6)))
    with pytest.raises(Exception) as e: load_arrays(tmp_path)
    assert one_line(e, tmp_path, 'more than 1 MB')

# --- where data is kept -----------------------------------------------------------------------------------------
@pytest.mark.faults('a small file is spoiled')
@pytest.mark.parametrize('text', [b'nonsense', b'\xff\xfe', b'[DEFAULT]\ndata = a\ndata = b', b'[DEFAULT]\ndata = %(x', b'[a',
    b'[DEFAULT]\ndata = %(data)s', b'data = here'])
def test_an_odd_config(tmp_path, monkeypatch, text):
    (tmp_path/'config.ini').write_bytes(text)
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    monkeypatch.setattr('fastai.data.external.fastai_cfg', lru_cache(fastai_cfg.__wrapped__))
    for f in (lambda: fastai_folder('data'), lambda: course_path('imagenette')):
        with pytest.raises(Exception) as e: f()
        assert one_line(e, tmp_path/'config.ini', 'delete it')
