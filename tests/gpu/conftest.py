"""What `make gpu` shares. It wants a CUDA GPU, and where there is none it says so in one line and fails. What it measures goes
to results/gpu/<card>/. With `--device cpu` it is rehearsed in small: nothing is measured, no result is written"""
import atexit, gc, os, re, shutil, tempfile

users = dict(os.environ)   # for a command that runs as a user's
home = tempfile.mkdtemp(prefix='resnet_course-gpu-')   # before fastai is imported: the drawn photos are cached there
atexit.register(shutil.rmtree, home, ignore_errors=True)
os.environ |= dict(FASTAI_HOME=home, MPLBACKEND='Agg', CUBLAS_WORKSPACE_CONFIG=':4096:8')   # products with the same bits each time
for k in ('IN_TEST','RESNET_COURSE_DATA','LONG'): os.environ.pop(k, None)

import pytest, torch
from fastai.vision.all import *
from resnet_course.kit.files import save_json
from resnet_course.kit.runs import commit, hardware, versions
from resnet_course.kit.sample import make_sample

top = Path(__file__).resolve().parent.parent.parent

def pytest_addoption(parser): parser.addoption('--device', default='cuda', choices=['cuda','cpu'], help='cpu: a rehearsal')

def pytest_configure(config):
    if config.getoption('device')=='cpu': defaults.use_cuda = False
    elif not torch.cuda.is_available(): pytest.exit('no CUDA GPU here: nothing was tested and nothing measured', returncode=1)

def pytest_pycollect_makeitem(collector, name, obj):
    "Only what a test file defines is a test: fastai's star import brings others"
    if getattr(obj, '__module__', collector.module.__name__)!=collector.module.__name__: return []

@pytest.fixture(scope='session')
def device(request): return torch.device(request.config.getoption('device'))

@pytest.fixture(scope='session')
def rehearsal(device): return device.type=='cpu'

@pytest.fixture(autouse=True)
def quiet_place(tmp_path, monkeypatch):
    "Without progress bars; afterwards no learner keeps memory, which would be counted as that of the next"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])
    yield
    gc.collect()
    torch.cuda.empty_cache()

@pytest.fixture(scope='session')
def photos(tmp_path_factory, rehearsal):
    "A drawn set, large enough for several batches of 128"
    n,size = (64,32) if rehearsal else (640,160)
    return make_sample(tmp_path_factory.mktemp('drawn')/'set', n_train=n, n_val=n//4, size=size)

@pytest.fixture(scope='session')
def results(rehearsal, tmp_path_factory):
    "A folder for this card's results, which go into results/ at the end: records made until then are of a clean commit"
    made = tmp_path_factory.mktemp('results')
    yield made
    if rehearsal: return
    card = re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()).strip('-')
    shutil.copytree(made, top/'results'/'gpu'/card, dirs_exist_ok=True)

@pytest.fixture(scope='session')
def machine(rehearsal):
    hw = hardware()
    if rehearsal: return hw
    return dict(hw, memory=torch.cuda.mem_get_info()[1], capability=list(torch.cuda.get_device_capability()))

@pytest.fixture(scope='session')
def keep(results, machine):
    "Writes rows of a name into the results, with what made them"
    now = commit()
    def _keep(name, rows, **about):
        save_json(results/f'{name}.json', dict(name=f'gpu-{name}', command='make gpu', **about, rows=rows, hardware=machine,
                                               versions=versions(), commit=now))
    return _keep
