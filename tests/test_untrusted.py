"""Files that anybody may have written: whatever is in them, a reader does its work, or says in one line which file it is.
RESNET_COURSE_FUZZ sets how many spoiled files each reader gets"""
import os, random, socket
import pytest, torch
from fastai.vision.all import *
from resnet_course.kit import checkpoint
from resnet_course.kit.files import CourseError, load_json, save_json, sweep, write_whole
from resnet_course.kit.records import load_record
from resnet_course.kit.results import plot_history, results, summary
from resnet_course.kit.runs import measured_fit
from conftest import CtrlC, one_line, tiny_learner

many = int(os.environ.get('RESNET_COURSE_FUZZ', 150))
recorded = Path(__file__).parent.parent/'results/ladder/fcn-chapter14-s42.json'

# --- spoiled at random ------------------------------------------------------------------------------------------
odd = [None, True, -1, 0, 2.5, 10**9, 10**400, 1e308, 'text', '', '../../a', '\0', [], {}, [[]], [None], {'a':{}}, '\ud800']

def other_bytes(data, rng):
    at,n = rng.randrange(len(data)),rng.randrange(1, 9)
    return rng.choice([data[:at], data[:at]+data[at+n:], data[:at]+rng.randbytes(n)+data[at:],
                       data[:at]+bytes([data[at]^1<<rng.randrange(8)])+data[at+1:]])

def places(o):
    "All (container, key) in nested dicts and lists"
    for k,v in list(o.items() if isinstance(o, dict) else enumerate(o)):
        yield o,k
        if isinstance(v, (dict,list)): yield from places(v)

def other_value(o, rng):
    "`o`, and one value in it is another, or gone"
    o = deepcopy(o)
    inside,key = rng.choice([*places(o)])
    if rng.random()<.2: del inside[key]
    else: inside[key] = rng.choice(odd)
    return o

def accepted(file, read):
    "Does `read` do its work, or refuse `file` in one line?"
    try: read()
    except CourseError as e: return str(file) in str(e) and len(str(e).splitlines())==1
    return True

@pytest.mark.parametrize('seed', range(many))
def test_a_spoiled_record(tmp_path, seed):
    rng,file = random.Random(seed),tmp_path/'a.json'
    data = recorded.read_bytes()
    file.write_bytes(other_bytes(data, rng) if seed%2 else json.dumps(other_value(json.loads(data), rng)).encode())
    def tables():
        runs = results(tmp_path)
        if len(runs): summary(runs)
    for read in (lambda: load_json(file), lambda: load_record(file), tables): assert accepted(file, read)

@pytest.fixture(scope='module')
def stopped(drawn, tmp_path_factory):
    "The checkpoint of a run that was stopped in its second epoch"
    file = tmp_path_factory.mktemp('stopped')/'a.json'
    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt): fit(drawn, file, cbs=[CtrlC('before_batch', 1, 6)])
    return file

def fit(drawn, file, cbs=(), **kwargs):
    learn = tiny_learner(drawn, cbs=cbs)
    with learn.no_bar(), learn.no_logging():
        return measured_fit(learn, 2, 1e-2, file, model='fcn', recipe='small', size=32, seed=42, **kwargs)

def copied_run(stopped, tmp_path):
    for o in stopped.parent.ls(): shutil.copy(o, tmp_path)
    (tmp_path/'a.pt.old').unlink(missing_ok=True)
    return tmp_path/'a.json',tmp_path/'a.pt'

@pytest.mark.parametrize('seed', range(many//10))
def test_a_spoiled_checkpoint(drawn, stopped, tmp_path, seed):
    rng = random.Random(seed)
    file,ckpt = copied_run(stopped, tmp_path)
    if seed%3==0: ckpt.write_bytes(other_bytes(ckpt.read_bytes(), rng))
    else:
        state = torch.load(ckpt, weights_only=True)
        part = rng.choice(sorted(state))
        torch.save(state | {part:other_value({part:state[part]}, rng).get(part)}, ckpt)
    try: rec = fit(drawn, file, resume=True)
    except CourseError as e: assert str(ckpt) in str(e) and len(str(e).splitlines())==1
    else: assert rec['complete']

# --- checkpoints of the right run, with wrong contents ----------------------------------------------------------
def weight(f):
    def change(s): s['model'] = {k: f(o) if o.ndim==4 else o for k,o in s['model'].items()}
    return change
def put(**parts): return lambda s: s.update(parts)
def average(f):
    def change(s):
        for o in s['opt']['state']:
            for k in o.keys() & {'grad_avg','sqr_avg'}: o[k] = f(o[k])
    return change

wrong = dict(iter=put(iter=10**9), before=put(iter=-1), epoch=put(epoch='one'), negative=put(epoch=-3), later=put(epoch=99),
    shape=weight(lambda o: o[:1]), dtype=weight(lambda o: o.double()), numbers=weight(lambda o: o.tolist()),
    keys=lambda s: s['model'].update(more=torch.zeros(1)), fewer=lambda s: s['model'].popitem(), none=put(model={}),
    averages=average(lambda o: o.flatten()[:1]), text=average(lambda o: 'text'), states=lambda s: s['opt']['state'].pop(),
    hypers=lambda s: s['opt'].update(hypers=[]), rate=lambda s: s['opt']['hypers'][0].update(lr='fast'),
    history=put(history=[dict(epoch='x')]), more=lambda s: s.update(history=s['history']*9), random=lambda s: s['rng'].update(torch=torch.zeros(3)),
    position=lambda s: s['rng'].update(numpy=(*s['rng']['numpy'][:2], 10**6, *s['rng']['numpy'][3:])), gradients=put(grads=[torch.zeros(3)]),
    recorder=lambda s: s['recorder'].update(losses='none'), parts=put(parts=[]), nothing=lambda s: [s.pop(k) for k in list(s) if k!='about'])

class Untrained(Callback):
    def before_batch(self): raise AssertionError('trained')

@pytest.mark.parametrize('change', wrong.values(), ids=wrong)
def test_wrong_contents(drawn, stopped, tmp_path, change):
    "Are noticed before anything is trained or deleted"
    file,ckpt = copied_run(stopped, tmp_path)
    state = torch.load(ckpt, weights_only=True)
    change(state)
    torch.save(state, ckpt)
    before = {o.name:o.read_bytes() for o in tmp_path.ls()}
    with pytest.raises(Exception) as e: fit(drawn, file, resume=True, cbs=[Untrained()])
    assert one_line(e, ckpt, 'not a complete checkpoint', 'delete it', 'another folder')
    assert {o.name:o.read_bytes() for o in tmp_path.ls()}==before

# --- no files, and JSON that is none ----------------------------------------------------------------------------
def pipe(f): os.mkfifo(f)
def listening(f):
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(f.parent)   # its name may have only some hundred letters
    try: s.bind(f.name)
    finally: os.chdir(here)
    s.close()
def circle(f): f.symlink_to(f.name)
def device(f): f.symlink_to('/dev/zero')
kinds = dict(pipe=pipe, socket=listening, circle=circle, device=device, folder=Path.mkdir)

@pytest.mark.skipif(os.name=='nt', reason='has other kinds')
@pytest.mark.parametrize('make', kinds.values(), ids=kinds)
@pytest.mark.parametrize('read', [load_json, load_record, checkpoint._load_state, lambda f: results(f.parent)], ids=['json','record','checkpoint','table'])
def test_what_is_no_file(tmp_path, make, read):
    make(file:=tmp_path/'a.json')
    with pytest.raises(Exception) as e: read(file)
    assert one_line(e, file)

@pytest.mark.skipif(os.name=='nt', reason='has other kinds')
@pytest.mark.parametrize('make', [pipe,listening,device], ids=['pipe','socket','device'])
def test_nothing_takes_the_place_of_what_is_no_file(tmp_path, make):
    make(file:=tmp_path/'a.json')
    with pytest.raises(OSError, match='a.json'): save_json(file, {})
    assert not file.is_file() and os.listdir(tmp_path)==['a.json']

texts = {'deep':'['*10**6, 'rather deep':'{"a":'*500+'1'+'}'*500, 'nan':'{"accuracy": NaN}', 'infinity':'{"a": -Infinity}', 'overflow':'{"a": 1e999}',
    'twice':'{"a": 1, "a": 2}', 'digits':'{"a": '+'9'*5000+'}', 'list':'[1]', 'number':'3', 'long':'{"a": "'+'x'*2**24+'"}', 'empty':'', 'bytes':'\x00\x01'}
@pytest.mark.parametrize('text', texts.values(), ids=texts)
def test_json_that_is_none(tmp_path, text):
    (file:=tmp_path/'a.json').write_text(text)
    with pytest.raises(Exception) as e: load_json(file)
    assert one_line(e, file, 'not a complete record', 'delete it')

# --- what killed writers leave ----------------------------------------------------------------------------------
def test_the_next_writer_removes_what_is_old(tmp_path):
    left,young,mine = (tmp_path/o for o in ('.gone.pt-0123456789abcdef.tmp', '.a.json-fedcba9876543210.tmp', '.my-0123456789abcdef'))
    for o in (left,young,mine): o.write_bytes(b'x')
    for o in (left,mine): os.utime(o, (1,1))
    save_json(tmp_path/'a.json', {})
    assert {*os.listdir(tmp_path)}=={'a.json', young.name, mine.name}   # one may be at work, and one is somebody's
    sweep(tmp_path, ['a.json'])
    assert {*os.listdir(tmp_path)}=={'a.json', mine.name}

@pytest.mark.skipif(os.name=='nt', reason='has other modes')
def test_a_file_has_the_mode_that_others_have(tmp_path):
    old = os.umask(0o027)
    try:
        with write_whole(tmp_path/'a') as f: f.write('x')
        assert (tmp_path/'a').stat().st_mode&0o777==0o640
    finally: os.umask(old)

def test_locks_of_killed_runs_go(drawn, tmp_path):
    for name,age in (('gone',7200),('new',0)):
        (o:=tmp_path/f'.{name}.json.lock').touch()
        os.utime(o, (time.time()-age,)*2)
    fit(drawn, tmp_path/'a.json')
    assert not (tmp_path/'.gone.json.lock').exists() and (tmp_path/'.new.json.lock').exists()
