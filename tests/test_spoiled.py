"""Files that anybody may have written: whatever is in them, a reader does its work, or says in one line which file it is.
RESNET_COURSE_FUZZ sets how many spoiled files each reader gets"""
import os, random
import pytest, torch, resnet_course
from safetensors.torch import load_file, save_file
from fastai.vision.all import *
from fastai.data.external import fastai_cfg
from dataclasses import asdict   # after fastai, which has another
from resnet_course import check, doctor, landscape, learn as lessons
from resnet_course.again import finished_run
from resnet_course.data import run_settings
from resnet_course.fcn import get_fcn
from resnet_course.kit import checkpoint
from resnet_course.kit.download import fastai_folder
from resnet_course.kit.files import CourseError, load_json, save_json, sweep, write_whole
from resnet_course.kit.photos import data_name
from resnet_course.kit.records import load_record
from resnet_course.kit.results import results, summary
from resnet_course.kit.runs import measured_fit, record_file
from resnet_course.kit.weights import load_weights, read_weights, save_weights, says
from resnet_course.recipe import load_trained, Recipe, recipe_from
from resnet_course.bench import bench_results, bench_rows
from conftest import a_socket, CtrlC, device, loop, one_line, pipe, tiny_learner

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

@pytest.mark.faults('a record is spoiled')
@pytest.mark.parametrize('seed', range(many))
def test_a_spoiled_record(tmp_path, seed):
    rng,file = random.Random(seed),tmp_path/'a.json'
    data = recorded.read_bytes()
    file.write_bytes(other_bytes(data, rng) if seed%2 else json.dumps(other_value(json.loads(data), rng)).encode())
    def tables():
        runs = results(tmp_path)
        if len(runs): summary(runs)
    for read in (lambda: load_json(file), lambda: load_record(file), tables): assert accepted(file, read)

def spoil(data, seed):
    "The bytes of a file, of which some are others; of JSON every second time a value is"
    rng = random.Random(seed)
    try: said = json.loads(data) if seed%2 else None
    except ValueError: said = None
    return json.dumps(other_value(said, rng)).encode() if said else other_bytes(data, rng)

def spoiled(file, data, read, seeds=range(many)):
    "Is each spoiled version of `data` read from `file`, or refused in one line?"
    for seed in seeds:
        file.write_bytes(spoil(data, seed))
        assert accepted(file, read), seed

@pytest.mark.faults('a record is spoiled', many)
@pytest.mark.parametrize('which', ['ladder/fcn-chapter14-s42', 'recipe/resnet18-imagenette-5ep-s42'])
def test_a_spoiled_record_is_not_reproduced(tmp_path, which):
    def read():
        rec,kind,_ = finished_run(file)
        if kind=='train': recipe_from(rec['settings'], file)
    file = tmp_path/'a.json'
    spoiled(file, (recorded.parent.parent/f'{which}.json').read_bytes(), read)

@pytest.mark.faults('a record is spoiled', many)
def test_a_spoiled_record_of_the_bench(tmp_path):
    def read():
        for o in bench_results(tmp_path).values(): bench_rows(o)
    spoiled(tmp_path/'a-steps.json', (recorded.parent.parent/'bench/amx/a-steps.json').read_bytes(), read)

@pytest.mark.faults('a small file is spoiled', many)
def test_a_spoiled_sample_card(tmp_path):
    def read():
        sizes = run_settings(tmp_path)
        assert all(isinstance(o, int) for o in sizes.values()) and isinstance(data_name(tmp_path), str)
    spoiled(tmp_path/'sample.json', json.dumps(dict(n_train=48, n_val=24, size=32, seed=1)).encode(), read)

@pytest.mark.faults('a small file is spoiled', many)
def test_a_spoiled_progress(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(file:=tmp_path/'mine.json'))
    spoiled(file, json.dumps(dict(resblock='2026-11-29 10:00', fcn='2026-11-28 09:00', guesses=dict(gamma=.5))).encode(), check.progress)

@pytest.mark.faults('a small file is spoiled', many)
def test_a_spoiled_config(tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    def read():
        fastai_cfg.cache_clear()   # fastai reads it once
        os.path.exists(fastai_folder('data')/'a')
    try: spoiled(tmp_path/'config.ini', b'[DEFAULT]\ndata = data\narchive = archive\nstorage = tmp\nmodel = %(data)s\n', read)
    finally:
        monkeypatch.undo()
        fastai_cfg.cache_clear()

@pytest.mark.faults('a small file is spoiled', many)
def test_a_spoiled_list_of_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet_course, '__file__', str(tmp_path/'__init__.py'))
    spoiled(tmp_path/'tested.json', (recorded.parents[2]/'resnet_course/tested.json').read_bytes(), lambda: list(doctor._untested()))

@pytest.mark.faults('a small file is spoiled', many)
def test_a_spoiled_surface(tmp_path):
    what = dict(xs=[-1.,0.,1.], ys=[0.], images=4)
    rec = dict(model='fcn', complete=False, surface=dict(what, losses=[[1.,2.,None]], seconds=1.))
    file = tmp_path/'a.json'
    def read():
        if there:=landscape._begun(file, dict(model='fcn'), what): assert len(there['surface']['losses'][0])==3
    spoiled(file, json.dumps(rec).encode(), read)

@pytest.mark.faults('a small file is spoiled', 2*(many//10))
def test_spoiled_lessons(tmp_path, monkeypatch):
    "A reader's notebook, and what was noted of it"
    why = Path('nbs/00_why.ipynb')
    monkeypatch.setattr(lessons, 'course_files', lambda home: [why])
    lessons.bring(tmp_path/'mine')
    def bring(): lessons.bring(tmp_path/'mine')
    for file in (tmp_path/'mine'/why, tmp_path/'mine'/lessons.course_mark):
        data = file.read_bytes()
        spoiled(file, data, bring, range(many//10))
        file.write_bytes(data)

base = Recipe('test', model='fcn', epochs=1, size=32, presize=40, bs=16)
def saved(file): return save_weights(file, net:=get_fcn(2), recipe=asdict(base), classes=['a','b'], says=says(net, 32))

@pytest.mark.faults('weights are spoiled', many//3)
@pytest.mark.parametrize('digest', [True, False])
def test_spoiled_weights(tmp_path, digest):
    "With a digest, and with one that whoever changed it has left out"
    saved(file:=tmp_path/'a.safetensors')
    data,(said,weights) = file.read_bytes(),read_weights(file)
    about = json.loads(said['resnet_course'])
    if not digest: del about['sha256']
    for seed in range(many//3):
        rng = random.Random(seed)
        if seed%3==0: file.write_bytes(other_bytes(data, rng))
        elif seed%3==1: file.write_bytes(other_bytes(data[:1500], rng) + data[1500:])   # what it says of itself
        else: save_file(weights, file, dict(resnet_course=json.dumps(other_value(about, rng))))
        assert accepted(file, lambda: load_trained(file)), seed

@pytest.mark.faults('weights are spoiled', 3)
def test_a_flipped_bit_of_weights(tmp_path):
    sha256 = saved(file:=tmp_path/'a.safetensors')
    data = file.read_bytes()
    assert json.loads(read_weights(file)[0]['resnet_course'])['sha256']==sha256 and load_trained(file).classes==['a','b']
    for at in (-1, -1000, len(data)//2):
        other = bytearray(data)
        other[at] ^= 1
        file.write_bytes(other)
        with pytest.raises(Exception) as e: load_trained(file)
        assert one_line(e, file, 'spoiled')

@pytest.mark.faults('weights are spoiled')
@pytest.mark.parametrize('n', [10**5, 10**7])
def test_weights_with_millions_of_classes(tmp_path, n):
    saved(file:=tmp_path/'a.safetensors')
    save_file(load_file(file), file, dict(resnet_course=json.dumps(dict(recipe=asdict(base), classes=['a']*n))))
    with pytest.raises(Exception) as e: load_trained(file)
    assert one_line(e, file)

@pytest.mark.faults('a record is spoiled')
@pytest.mark.parametrize('name', ['/../../a', '..', 'a/b', 'a b', '', '\n', 'a\\b', '~', 'a:b', 'ü'*150])
def test_names_that_files_are_not_called(tmp_path, name):
    "Nothing is written outside of the folder that was named"
    rec = json.loads(recorded.read_bytes())
    if name!='..':   # which is harmless between two others
        with pytest.raises(Exception) as e: record_file(tmp_path/'out', f'{name} ' if name=='' else name, 'r', 1)
        assert one_line(e, 'cannot be the name of a file')
    for k in ('model','recipe'):
        save_json(tmp_path/'a.json', rec | {k:name if name!='..' else '../..'})
        for read in (load_record, finished_run):
            with pytest.raises(Exception) as e: read(tmp_path/'a.json')
            assert one_line(e, tmp_path/'a.json')
        with pytest.raises(Exception) as e: recipe_from(asdict(base) | dict(name=name if name!='..' else '../..'), tmp_path/'a.json')
        assert one_line(e, tmp_path/'a.json')

@pytest.mark.parametrize('text', ['', '{"a', '[]', '{"a": 1}', '\x00'])
def test_overwrite_begins_anew_whatever_there_was(drawn, tmp_path, text):
    (tmp_path/'a.json').write_text(text)
    assert fit(drawn, tmp_path/'a.json', overwrite=True)['complete'] and load_record(tmp_path/'a.json')['epochs']==2

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

@pytest.mark.faults('a checkpoint is spoiled')
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

def doubled(n):
    "Small in a file, which holds each list once"
    o = [1.]
    for _ in range(n): o = [o,o]
    return o
def endless():
    o = []
    o.append(o)
    return o

wrong = dict(doubled=lambda s: s['about'].update(lr=doubled(60)), rows=lambda s: s['history'][0].update(more=doubled(60)),
    endless=lambda s: s['about'].update(lr=endless()), iter=put(iter=10**9), before=put(iter=-1), epoch=put(epoch='one'), negative=put(epoch=-3), later=put(epoch=99),
    shape=weight(lambda o: o[:1]), dtype=weight(lambda o: o.double()), numbers=weight(lambda o: o.tolist()),
    keys=lambda s: s['model'].update(more=torch.zeros(1)), fewer=lambda s: s['model'].popitem(), none=put(model={}),
    averages=average(lambda o: o.flatten()[:1]), text=average(lambda o: 'text'), states=lambda s: s['opt']['state'].pop(),
    hypers=lambda s: s['opt'].update(hypers=[]), rate=lambda s: s['opt']['hypers'][0].update(lr='fast'),
    history=put(history=[dict(epoch='x')]), more=lambda s: s.update(history=s['history']*9), random=lambda s: s['rng'].update(torch=torch.zeros(3)),
    position=lambda s: s['rng'].update(numpy=(*s['rng']['numpy'][:2], 10**6, *s['rng']['numpy'][3:])), gradients=put(grads=[torch.zeros(3)]),
    recorder=lambda s: s['recorder'].update(losses='none'), parts=put(parts=[]), nothing=lambda s: [s.pop(k) for k in list(s) if k!='about'])

class Untrained(Callback):
    def before_batch(self): raise AssertionError('trained')

@pytest.mark.faults('a checkpoint is spoiled')
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
kinds = dict(pipe=pipe, socket=a_socket, circle=loop, device=device, folder=Path.mkdir)

@pytest.mark.faults('a pipe or a device in place of a file')
@pytest.mark.skipif(os.name=='nt', reason='has other kinds')
@pytest.mark.parametrize('make', kinds.values(), ids=kinds)
@pytest.mark.parametrize('read', [load_json, load_record, checkpoint._load_state, lambda f: results(f.parent), finished_run, load_trained, load_weights],
                         ids=['json','record','checkpoint','table','reproduce','trained','weights'])
def test_what_is_no_file(tmp_path, make, read):
    make(file:=tmp_path/'a.json')
    with pytest.raises(Exception) as e: read(file)
    assert one_line(e, file)

@pytest.mark.faults('a pipe or a device in place of a file')
@pytest.mark.skipif(os.name=='nt', reason='has other kinds')
@pytest.mark.parametrize('make', [pipe,a_socket,device], ids=['pipe','socket','device'])
def test_nothing_takes_the_place_of_what_is_no_file(tmp_path, make):
    make(file:=tmp_path/'a.json')
    with pytest.raises(OSError, match='a.json'): save_json(file, {})
    assert not file.is_file() and os.listdir(tmp_path)==['a.json']

texts = {'deep':'['*10**6, 'rather deep':'{"a":'*500+'1'+'}'*500, 'nan':'{"accuracy": NaN}', 'infinity':'{"a": -Infinity}', 'overflow':'{"a": 1e999}',
    'twice':'{"a": 1, "a": 2}', 'digits':'{"a": '+'9'*5000+'}', 'list':'[1]', 'number':'3', 'long':'{"a": "'+'x'*2**24+'"}', 'empty':'', 'bytes':'\x00\x01'}
@pytest.mark.faults('a record is spoiled')
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
