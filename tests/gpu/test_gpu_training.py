"Trainings on a GPU: a run that goes on where it was stopped, some steps of every recipe, the bench's steps, and a speedrun"
import signal, subprocess, warnings
import pytest, torch, typer
from fastai.vision.all import *
from dataclasses import replace
from resnet_course import cli
from resnet_course.kit.runs import measured_fit
from resnet_course.bench import bench
from resnet_course.fcn import get_fcn
from resnet_course.loading import cached_data
from resnet_course.speed import fast_learner
from resnet_course.recipe import recipe_learner, recipes, Recipe
from conftest import users

# --- stopped and resumed --------------------------------------------------------------------------------------------
class Stop(Callback):
    "Ends the run after one of its batches, as Ctrl-C does"
    order = 5
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter==self.at: os.kill(os.getpid(), signal.SIGINT)

def fast(path, **kwargs):
    set_seed(42)
    dls = cached_data(path, presize=32, resize=32, bs=16)
    return fast_learner(dls, get_fcn(dls.c), **kwargs)

small = Recipe('small', model='resnet18', epochs=2, size=32, presize=40, bs=16, stem_pool=False)   # max-pools round as they like
runs = {'fcn, Adam':fast, 'fcn, Adam, fp32':partial(fast, precision='fp32'), "ResNet-18, the recipes' optimiser":partial(recipe_learner, r=small),
        'with an average, alternating flips, growing':partial(recipe_learner, r=replace(small, ema=.9, flip='alternating', start_size=16))}

def fit(make, path, file, stop=None, resume=False):
    learn = make(path)
    if stop: learn.add_cb(Stop(stop))
    record = measured_fit(learn, 2, 3e-3, file, resume, model='m', recipe='r', size=32, seed=42, command='make gpu')
    return record, {k:o.cpu() for k,o in learn.model.state_dict().items() if isinstance(o, Tensor)}, len(learn.dls.train)

@pytest.fixture(scope='module')
def resume_rows(keep):
    rows = []
    yield rows
    keep('resume', rows, what='a run that was stopped in its second epoch, beside one that was not')

@pytest.mark.parametrize('name', runs)
def test_resume(name, photos, resume_rows):
    "To the last bit, but where PyTorch warns that it has no such kernel: there the losses are within 5%"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            whole,weights,n = fit(runs[name], photos, Path('whole.json'))
            with pytest.raises(KeyboardInterrupt): fit(runs[name], photos, Path('stopped.json'), stop=n+n//2+1)
            rest,again,_ = fit(runs[name], photos, Path('stopped.json'), resume=True)
        finally: torch.use_deterministic_algorithms(False)
    unsure = sorted({str(o.message).split()[0] for o in said if 'does not have a deterministic implementation' in str(o.message)})
    apart = max((weights[k].double()-again[k].double()).abs().max().item() for k in weights)
    losses = [[o[k] for o in rec['history'] for k in ('train_loss','valid_loss')] for rec in (whole,rest)]
    resume_rows.append(dict(run=name, precision=whole['precision'], largest_difference=apart, losses=losses, not_deterministic=unsure))
    if unsure: assert np.allclose(*losses, rtol=.05)
    else: assert apart==0 and losses[0]==losses[1]

# --- every recipe ---------------------------------------------------------------------------------------------------
class Some(Callback):
    "So many batches of training and one of validation; the losses, and how long a step takes after the first ones"
    order = 70
    def __init__(self, n): self.n,self.losses,self.times = n,[],[]
    def after_batch(self):
        if not self.training: raise CancelValidException
        self.losses.append(self.loss.item())
        self.times.append(time.perf_counter())
        if len(self.losses)==self.n: raise CancelTrainException

@pytest.fixture(scope='module')
def recipe_rows(keep):
    rows = []
    yield rows
    keep('recipes', rows, what='the first steps on a drawn set: memory in bytes, images a second after the third step')

@pytest.mark.parametrize('name', recipes)
def test_some_steps_of_a_recipe(name, photos, device, recipe_rows, rehearsal):
    r = recipes[name]
    if rehearsal and name not in ('tiny','screen-01'): pytest.skip('a rehearsal')
    r = replace(r, start_size=None, **(dict(bs=16) if rehearsal else {}))   # at its full size at once
    if device.type=='cuda': torch.cuda.reset_peak_memory_stats()
    learn = recipe_learner(photos, r)
    before = {k:o.detach().cpu().clone() for k,o in learn.model.named_parameters()}
    n = min(8, len(learn.dls.train))
    some = Some(n)
    learn.fit(1, r.lr, cbs=some)
    assert len(some.losses)==n and np.isfinite(some.losses).all()
    assert {p.device.type for p in learn.model.parameters()}=={device.type}
    assert any((before[k]!=o.detach().cpu()).any() for k,o in learn.model.named_parameters())
    speed = (n-4)*r.bs/(some.times[-1]-some.times[3]) if n>4 else None
    memory = torch.cuda.max_memory_allocated() if device.type=='cuda' else None
    recipe_rows.append(dict(recipe=name, model=r.model, size=r.size, bs=r.bs, precision=learn.precision, steps=n, first_loss=some.losses[0],
                            last_loss=some.losses[-1], images_per_second=speed, memory=memory))

# --- how fast ---------------------------------------------------------------------------------------------------------
def test_the_steps_of_the_bench(photos, results, rehearsal):
    rec = bench('a', photos, repeats=1 if rehearsal else 5, out=results, quick=rehearsal)['steps']
    d = pd.DataFrame(rec['rows'])
    assert (d['median']>0).all() and (d.groupby(['net','size']).what.apply(lambda o: 'course' in set(o))).all()

def test_a_speedrun(results, keep, rehearsal):
    "On the photos of RESNET_COURSE_DATA, or Imagenette where it is on this disk, else on the drawn sample"
    commands = typer.main.get_command(cli.app).commands
    if 'speedrun' not in commands: pytest.skip('this version of the course has no speedrun')
    if rehearsal: pytest.skip('a rehearsal')
    def run(*args): return subprocess.run([sys.executable, '-W', 'ignore', *args], env=users, capture_output=True, text=True, timeout=300)
    find = 'import os; from resnet_course.data import imagenette_on_disk as f; print(os.environ.get("RESNET_COURSE_DATA") or f() or "sample")'
    data = run('-c', find).stdout.strip()
    args,options = {'--target':75.7, '--data':data, '--out':Path('speedrun').absolute()},{o for p in commands['speedrun'].params for o in p.opts}
    words = ['speedrun', *(str(w) for k,v in args.items() if k in options for w in (k,v))]
    start = time.perf_counter()
    res = run('-m', 'resnet_course', *words)
    seconds = time.perf_counter()-start
    for f in Path('speedrun').rglob('*.json'): shutil.copy(f, results/f'speedrun-{f.name}')
    keep('speedrun', [dict(words=words, data=Path(data).name, status=res.returncode, seconds=seconds, said=res.stdout.splitlines(), errors=res.stderr.splitlines())])
    assert 'Traceback' not in res.stderr, res.stderr
    assert res.returncode==0 or data=='sample', res.stderr   # the drawn photos may be too hard for it
