"What several tests share. No test writes outside pytest's temporary folders, or needs a network."
import ast, atexit, gc, gzip, json, os, shutil, signal, socket, subprocess, sys, tarfile, tempfile, zipfile
from pathlib import Path

# Before fastai is imported, which reads FASTAI_HOME once. A short name: the paths of sockets may have only some hundred letters.
root = os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', tempfile.gettempdir())   # pytest's own folders stay where they were
home = tempfile.mkdtemp(prefix='course-', dir=root)
atexit.register(shutil.rmtree, home, ignore_errors=True)
strict = [o for o in (Path(__file__).parent.parent/'.ci/warnings').read_text(encoding='utf-8').splitlines() if o and o[0]!='#']
os.environ |= dict(FASTAI_HOME=home, TMPDIR=home, MPLBACKEND='Agg', PYTHONWARNINGS=','.join(strict), CUDA_VISIBLE_DEVICES='')
tempfile.tempdir = home
for k in ('IN_TEST','RESNET_COURSE_DATA','LONG'): os.environ.pop(k, None)
signal.signal(signal.SIGINT, signal.default_int_handler)   # it is ignored where the tests run in the background

import pytest, torch
from fastai.vision.all import *
from PIL import Image
from resnet_course.kit.files import CourseError, save_json
from resnet_course.kit.runs import commit, hardware, versions
from resnet_course.kit.sample import make_sample
from resnet_course.data import get_data
from resnet_course.training import get_learner
from resnet_course.fcn import get_fcn
from resnet_course.speed import TrimMemory

collect_ignore = ['gpu']   # a target of its own, `make gpu`, which does not read this file
if torch.backends.mps.is_available(): defaults.use_cuda = False

slow = 'RESNET_COURSE_FAULTS' in os.environ   # `make test-slow` sets it, to the folder of the records

def pytest_configure(config):
    for o in strict: config.addinivalue_line('filterwarnings', o)

def pytest_collection_modifyitems(items):
    "`-m faults` runs the tests that count faults; what takes minutes is for `make test-slow`"
    for o in items:
        if 'faults' in getattr(o, 'fixturenames', ()): o.add_marker('faults')
        if o.get_closest_marker('long') and not slow: o.add_marker(pytest.mark.skip(reason='it takes minutes: make test-slow'))

# Of each kind of fault how many were injected, and how many did no harm, which has to be all. `make test-slow` keeps that in
# records, from which the docs have their table. A test says it of itself, `@pytest.mark.faults(kind, n)`: it passes if its
# `n` faults do no harm. One that counts as it goes on takes the fixture.
counts = defaultdict(Counter)
about_faults = defaultdict(dict)

def count_faults(kind, injected, survived, **about):
    counts[kind].update(injected=injected, survived=survived, lost=injected-survived)
    about_faults[kind] |= about

@pytest.fixture
def faults(): return count_faults

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    rep = yield
    for m in item.iter_markers('faults'):
        if m.args and call.when=='call' and not rep.skipped:
            kind,n = m.args if len(m.args)>1 else (*m.args, 1)
            count_faults(kind, n, n*rep.passed)
    return rep

def save_faults():
    now = commit()   # before the first record is written
    for kind,n in counts.items():
        save_json(Path(os.environ['RESNET_COURSE_FAULTS'])/f"{'-'.join(kind.split())}.json", dict(name=kind, command='make test-slow',
                  **n, **about_faults[kind], hardware=hardware('cpu'), versions=versions(), commit=now))

def pytest_collection_finish(): gc.freeze()   # what the imports brought stays, and need not be looked through again

@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    "Gives back a test's memory: a learner goes in circles, and `keep_memory` holds what is freed, for the whole process"
    try: return (yield)
    finally:
        gc.collect()
        TrimMemory().after_epoch()

def pytest_sessionfinish():
    if slow: save_faults()

def pytest_pycollect_makeitem(collector, name, obj):
    "Only what a test file defines is a test: fastai's star import brings fastcore's `test_eq` and others"
    if getattr(obj, '__module__', collector.module.__name__)!=collector.module.__name__: return []

@pytest.fixture(autouse=True)
def quiet_place(tmp_path, monkeypatch):
    "Each test in a folder of its own (where `runs/` goes too), one thread, no progress bars"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])
    torch.set_num_threads(1)

@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    "64 pictures to train on and 24 to validate, 32 px, ten classes; for tests that only read"
    return make_sample(tmp_path_factory.mktemp('drawn')/'set', n_train=64, n_val=24, size=32)

def outside(): return {k:v for k,v in os.environ.items() if k!='PYTHONPATH'}   # of a process that runs what is installed

@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "Of what git has: the names in the source distribution, the folder with the wheel's files, and the wheel's bytes"
    top,here = Path(__file__).parent.parent,tmp_path_factory.mktemp('built')
    listed = subprocess.run(['git','-C',top,'ls-files'], capture_output=True, text=True, check=True).stdout.splitlines()
    for o in listed:
        (here/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(top/o, here/o)
    build = [sys.executable,'-W','ignore','setup.py','-q','sdist','bdist_wheel']
    subprocess.run(build, cwd=here, env=outside(), check=True, capture_output=True)
    (source,),(wheel,) = (list((here/'dist').glob(o)) for o in ('*.tar.gz','*.whl'))
    zipfile.ZipFile(wheel).extractall(here/'there')
    return {o.partition('/')[2] for o in tarfile.open(source).getnames()},here/'there',wheel.stat().st_size

def tiny_learner(path, precision='fp32', seed=42, **kwargs):
    "Two convolutions, and dropout, which draws from the random state, with the photos of `path`, from a fixed seed"
    set_seed(seed)
    dls = get_data(path, presize=32, resize=32, bs=16)
    *body,head = get_fcn(dls.c, widths=(8,16))
    return get_learner(dls, nn.Sequential(*body, nn.Dropout(0.2), head), precision, **kwargs)

class CtrlC(Callback):
    "Press Ctrl-C `times`, or send another signal, at an event of one epoch (and one batch of the run)"
    order = 5
    def __init__(self, event, at, batch=None, times=1, signum=signal.SIGINT): store_attr()
    def __call__(self, event_name):
        if event_name==self.event and self.epoch==self.at and self.batch in (None, self.train_iter):
            for _ in range(self.times): os.kill(os.getpid(), self.signum)

def named_gpu(monkeypatch, name='Tesla T4', capability=(7,5)):
    "A CUDA GPU that says of itself what it is, and can do nothing"
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *_: name)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *_: capability)

def norms(model): return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

def randomise_bn(model):
    "Fresh batch norms hold zeros and ones, which would hide whole branches and wrong statistics"
    for m in norms(model):
        for t in (m.weight, m.running_var): t.data.uniform_(.5, 1.5)
        for t in (m.bias, m.running_mean): t.data.uniform_(-.3, .3)
    return model

def photo(file, color=(200,60,20), size=(40,40), mode='RGB', **kwargs):
    "Save a picture of one colour"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file, **kwargs)
    return file

def photo_set(path, train=('cat','dog'), val=('cat','dog'), n=4):
    "A folder of `n` photos a class"
    for split,classes in (('train',train),('val',val)):
        for c in classes:
            for i in range(n): photo(path/split/c/f'{i}.jpg', (40*i,30*len(split),200))   # none is a copy of one to train on
    return path

def mnist_files(folder, n=3, labels=None):
    "A folder with the four files of the MNIST format, in a folder of its own as torchvision leaves them"
    rng,raw = np.random.default_rng(0),folder/'FashionMNIST'/'raw'
    raw.mkdir(parents=True)
    made = {f'{s}-{what}-ubyte.gz': rng.integers(0, 10, shape, dtype=np.uint8) for s in ('train','t10k')
            for what,shape in (('images-idx3',(n,4,5)), ('labels-idx1',(n,)))}
    if labels: made['train-labels-idx1-ubyte.gz'] = np.array(labels, np.uint8)
    for name,a in made.items():
        head = bytes([0,0,8,a.ndim]) + b''.join(o.to_bytes(4,'big') for o in a.shape)
        with gzip.open(raw/name, 'wb') as f: f.write(head+a.tobytes())
    return raw,list(made.values())

# What lies in the place of a file, and is none
def pipe(f): os.mkfifo(f)
def a_socket(f):
    s,here = socket.socket(socket.AF_UNIX),os.getcwd()
    os.chdir(f.parent)   # its name may have only some hundred letters
    try: s.bind(f.name)
    finally: os.chdir(here)
    s.close()
def device(f): f.symlink_to('/dev/zero')
def loop(f): f.symlink_to(f.name)

def same(a, b):
    "Are two states or records equal to the last bit, but for the time they took?"
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a if k not in ('seconds','spent','parts'))
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a==b

def saved_and_made(file):
    "What the cells of a page that hide their code have saved, and what they make now, as Markdown"
    space,res = {},[]
    for cell in json.loads(file.read_text(encoding='utf-8'))['cells']:
        source,out = ''.join(cell['source']),cell.get('outputs')
        if not source.startswith(('#| hide\nimport','#| hide\nfrom','#| echo: false')): continue
        *body,last = ast.parse(source).body
        exec(compile(ast.Module(body if out else [*body,last], []), file.name, 'exec'), space)
        if out: res.append((''.join(out[0]['data']['text/markdown']), eval(compile(ast.Expression(last.value), file.name, 'eval'), space).data))
    return res

def one_line(err, *parts):
    "True if `err` is a `CourseError` and its text is one line that holds all `parts`"
    text = str(err.value)
    whole = not set('\n\t') & set(text) and 'CourseError' not in text   # neither a stack trace nor its rest
    return isinstance(err.value, CourseError) and whole and all(str(p) in text for p in parts)
