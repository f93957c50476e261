"Several processes of one run: they see each photo once, make one process's step, agree, and end together"
import json, os, signal, subprocess, sys, time
from functools import lru_cache
import pytest, torch
from fastai.vision.all import *
from types import SimpleNamespace
from resnet_course.data import course_path, get_data
from resnet_course.kit.ranks import from_first, gathered, most, rank, together, total
from resnet_course.kit.shards import make_shards
from resnet_course.loading import cached_data
from resnet_course.recipe import recipe, recipe_data, replace
from resnet_course import scale
from resnet_course.kit.files import CourseError
from resnet_course.resnet import resnet18
from resnet_course.scale import for_many, joined, restarted
from resnet_course.speed import speed_up
from conftest import one_line, same
from scale_worker import jobs

worker = Path(__file__).with_name('scale_worker.py')
torchrun = [sys.executable,'-W','ignore','-m','torch.distributed.run','--standalone','--nproc_per_node']
env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')   # a line is read when it is printed

@pytest.fixture(scope='module')
def of(tmp_path_factory):
    "What came of each job with `n` processes; they are started once, for all jobs"
    @lru_cache
    def run(n):
        if n==1: return {k:f([]) for k,f in jobs.items() if k not in ('talk','apart')}
        file = tmp_path_factory.mktemp('jobs')/f'{n}.pt'
        p = subprocess.run([*torchrun, str(n), worker, file], env=env, capture_output=True, text=True, timeout=600)
        assert p.returncode==0, p.stderr[-2000:]
        return torch.load(file, weights_only=False)
    return run

def test_alone():
    with joined() as cbs: assert cbs==[] and not together() and rank()==0
    assert (most(2, 3), total(2, 3), gathered('a'), from_first(lambda: 1)) == ([2,3], [2,3], ['a'], 1)
    assert not restarted()

@pytest.mark.parametrize('given, words', [(dict(WORLD_SIZE='2'), ['WORLD_SIZE is 2','RANK','torchrun']), (dict(WORLD_SIZE='2', RANK='0'), ['MASTER_ADDR']),
                                          (dict(WORLD_SIZE='many'), ["'many'",'torchrun'])])
def test_processes_that_nobody_has_started(monkeypatch, given, words):
    for k,o in given.items(): monkeypatch.setenv(k, o)
    with pytest.raises(CourseError) as e:
        with joined(): pass
    assert one_line(e, *words)

def test_more_processes_than_gpus(monkeypatch):
    for k,o in dict(WORLD_SIZE='3', RANK='0', MASTER_ADDR='a', MASTER_PORT='1', LOCAL_WORLD_SIZE='3').items(): monkeypatch.setenv(k, o)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(CourseError) as e:
        with joined(): pass
    assert one_line(e, '3 processes', '2 GPUs', 'one process for each')

def test_an_empty_number_of_processes_is_one(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '')
    with joined() as cbs: assert cbs==[]

class OwnNorm(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x)*2
@pytest.mark.parametrize('norm', [OwnNorm(3), nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None),
                                  nn.BatchNorm2d(3, track_running_stats=False)], ids=['own','1d','affine','momentum','running'])
def test_norms_that_are_not_joined(norm):
    scale._check_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.GroupNorm(1, 3)))
    scale._check_norms(speed_up(resnet18(10)))
    with pytest.raises(CourseError) as e: scale._check_norms(nn.Sequential(nn.BatchNorm2d(3), norm))
    assert one_line(e, type(norm).__name__, 'nn.BatchNorm2d')

@pytest.mark.parametrize('load, n, words', [(lambda o: get_data(o, 32, 32, 16), 2, 'cached_data'),
                                            (lambda o: cached_data(o, 32, 32, 4, cache=False), 3, 'too few for 3 processes')])
def test_loaders_that_cannot_be_shared_out(drawn, load, n, words):
    with pytest.raises(CourseError) as e: scale.Scaled.check_loaders(SimpleNamespace(n=n, dls=load(drawn)))
    assert one_line(e, words)

class Worst(Metric): "Nobody knows how to join it"
@pytest.mark.parametrize('changed, words', [(dict(metrics=[Worst()]), 'the metric Worst'), (dict(cbs=[GradientAccumulation(32)]), 'GradientAccumulation'),
    (dict(loss_func=CrossEntropyLossFlat(weight=torch.tensor([1.,2.]))), 'weights'), (dict(loss_func=nn.CrossEntropyLoss(reduction='sum')), 'no mean'),
    (dict(loss_func=partial(F.cross_entropy, reduction='sum')), 'no mean')], ids=['metric','accumulation','weights','sum','partial'])
def test_what_cannot_be_put_together_from_parts(changed, words):
    usual = dict(metrics=[AvgMetric(accuracy), F1Score()], cbs=[], loss_func=LabelSmoothingCrossEntropyFlat())
    def check(**learn): scale.Scaled.check_step(SimpleNamespace(learn=SimpleNamespace(**learn)))
    for loss in (usual['loss_func'], nn.CrossEntropyLoss(), F.cross_entropy, BCEWithLogitsLossFlat(pos_weight=torch.ones(2)), FocalLossFlat(weight=torch.ones(2))):
        check(**usual|dict(loss_func=loss))
    with pytest.raises(CourseError) as e: check(**usual|changed)
    assert one_line(e, words, 'one process')

def first_process(monkeypatch, restarts):
    "Of a launch, as `launched` sees it"
    for k,o in dict(together=lambda: True, restarted=lambda: restarts>0, from_first=lambda f: f(), rank=lambda: 0).items():
        monkeypatch.setattr(scale, k, o)
def starts(monkeypatch, file, n, **asked):
    "What the `n`th start of a launch is to do, of which nothing comes"
    first_process(monkeypatch, n)
    with pytest.raises(ZeroDivisionError):
        with scale.launched(file, **dict(dict(resume=False, overwrite=False), **asked)) as found: 1/0
    return found
def test_started_again(monkeypatch, tmp_path):
    "Only what this launch has begun goes on"
    file,pt = tmp_path/'out'/'a.json',tmp_path/'out'/'a.pt'
    assert starts(monkeypatch, file, 0)==(False,False) and starts(monkeypatch, file, 1)==(True,False)
    file.write_text('{"complete": true}')   # of another run, from here on
    for n in (0,1,2):
        first_process(monkeypatch, n)
        with pytest.raises(CourseError) as e:
            with scale.launched(file, False, False): pass
        assert one_line(e, file, 'is finished')
    pt.write_text('x')
    assert starts(monkeypatch, file, 0, resume=True)==(True,False) and file.exists() and pt.exists()
    assert starts(monkeypatch, file, 1, resume=True)==(True,False)
    for n in (0,1): assert starts(monkeypatch, file, n, overwrite=True)==(False,True)   # what is there is still the older run's
    pt.write_text('y')
    assert starts(monkeypatch, file, 2, overwrite=True)==(True,False)
    first_process(monkeypatch, 1)
    with scale.launched(file, False, False): pass
    assert {*file.parent.iterdir()}=={file,pt}

def test_many_agree(of):
    assert of(3)['talk']==dict(together=True, first=0, most=[2,0], total=[3,3], ranks=[0,1,2], errors=['the first process has found nothing']*3)

def test_rows_are_shared_out(of):
    want, = of(1)['share']['rows']
    for n in (2,3): assert len(rows:=of(n)['share']['rows'])==n and all(torch.equal(o, want) for o in rows)

@pytest.mark.parametrize('n', [2,3,5])
def test_parts_make_the_whole(n, shards):
    "The parts of a batch are the batch, pixel for pixel, in training and in validation; also where photos are not kept, and of shards"
    r = replace(recipe('tiny'), bs=16, flip='alternating')
    for dl in (lambda: recipe_data(course_path('sample'), r).train, lambda: recipe_data(course_path('sample'), r).valid,
               lambda: cached_data(course_path('sample'), 40, 32, 16, cache=False).train,
               lambda: cached_data(shards, 40, 32, 16).train, lambda: cached_data(shards, 40, 32, 16).valid):
        def batches(k, n):
            o = dl()
            o.part = k,n
            o.rng.seed(1)
            return list(o)
        whole,parts = batches(0, 1),[batches(k, n) for k in range(n)]
        assert len({len(o) for o in parts})==1   # nobody waits for a batch that does not come
        for at in (0,1):
            seen = torch.cat([torch.cat([b[at] for b in bs]) for bs in zip(*parts)])
            assert torch.equal(seen, torch.cat([b[at] for b in whole]))

def test_a_small_last_batch_has_photos_for_all():
    dl = recipe_data(course_path('sample'), recipe('tiny')).valid
    dl.part = 1,3
    for left in (1,2,3):
        sizes = [len(o) for o in dl._batches(list(range(64+left)))]
        assert sum(sizes)==64+left and min(sizes)>=3

@pytest.mark.parametrize('n', [2,3])
def test_a_step_is_that_of_one_process(n, of):
    "Also where the batch does not divide, with batch norm over the whole batch; weights are equal over processes to the bit"
    alone,many = of(1)['step'],of(n)['step']
    assert len(many['sums'])==n and len(set(many['sums']))==1
    assert many['loss']==pytest.approx(alone['loss'], rel=1e-5)
    for k,g in alone['grads'].items(): assert (many['grads'][k]-g).abs().max() <= 1e-4*g.abs().max()+1e-7, k
    assert many['said']==pytest.approx(many['whole'], rel=1e-5) and many['said']==pytest.approx(alone['said'], abs=.02)
    assert many['parts']==[(0,1)]*2 and many['kinds']==alone['kinds']   # all is put back

def test_norms_may_stay_apart(of):
    "Each process trains with the statistics of its part, and all validate with those of the first"
    apart,joint = (of(2)[o] for o in ('apart','step'))
    assert len(apart['sums'])==2 and len(set(apart['sums']))==1 and apart['said']==pytest.approx(apart['whole'], rel=1e-5)
    assert apart['loss']!=joint['loss'] and apart['kinds']==joint['kinds']

def test_muon_is_shared_out(of):
    one,two = (of(n)['muon']['sums'] for n in (1,2))
    assert len(two)==2 and len(set(two))==1 and two[0]==pytest.approx(one[0], rel=1e-3)

@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    make_shards(course_path('sample'), dest:=tmp_path_factory.mktemp('shards')/'set', group=2**14, most=2**18)
    return dest

def record(out): return json.loads(next(out.glob('*.json')).read_text())

def command(shards, out, *options):
    return ['-m','resnet_course','train','--recipe','tiny','--data',shards,'--precision','fp32','--epochs','1','--out',out,*options]

def begin_and_kill(*words):
    "Starts a run, asks it for a checkpoint in the middle of an epoch, then kills a process of it"
    p = subprocess.Popen([*torchrun,*words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while 'recipe tiny' not in (line:=p.stdout.readline()): assert line, p.stderr.read()   # from now on a signal is heard
    pids = [int(o) for o in subprocess.run(['pgrep','-P',str(p.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(pids[0], signal.SIGUSR1)
    while not list(Path(words[-1]).glob('*.pt')) and p.poll() is None: time.sleep(.05)
    os.kill(pids[1], signal.SIGKILL)
    return len(pids),*p.communicate(timeout=600),p.returncode

@pytest.mark.faults('one of several processes is killed')
def test_a_lost_process_ends_the_others_and_more_go_on(shards, tmp_path):
    "In bounded time; another number of processes goes on from the checkpoint, with the photos that are left, and there is one record"
    n,_,err,rc = begin_and_kill('2', *command(shards, out:=tmp_path/'runs'))
    assert n==2 and rc and 'SIGKILL' in err
    done = subprocess.run([*torchrun,'3',*command(shards, out, '--resume')], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr[-2000:]
    rec = record(out)
    assert rec['complete'] and len(rec['history'])==1 and len(list(out.glob('*.json')))==1
    assert [o['processes'] for o in rec['parts']]==[2,3] and 0<rec['parts'][1]['batch']<62

@pytest.mark.faults('one of several processes is killed')
@pytest.mark.long
def test_torchrun_starts_them_again(shards, tmp_path):
    "With `--max-restarts` nobody has to say `--resume`"
    n,said,err,rc = begin_and_kill('2', '--max-restarts', '1', *command(shards, out:=tmp_path/'runs'))
    rec = record(out)
    assert n==2 and rc==0 and rec['complete'], err[-2000:]
    assert [o['processes'] for o in rec['parts']]==[2,2] and rec['parts'][1]['batch']>0 and said.count('records and curves')==1

@pytest.mark.long
def test_accelerate_launches(shards, tmp_path):
    "With --multi_gpu also where there is none; with --cpu it starts one process, whatever --num_processes says"
    words = ['-W','ignore','-m','accelerate.commands.launch','--multi_gpu','--num_processes','2','--num_machines','1','--mixed_precision','no',
             '--dynamo_backend','no','--main_process_port','0']
    p = subprocess.run([sys.executable,*words,*command(shards, tmp_path)], env=env, capture_output=True, text=True, timeout=600)
    assert p.returncode==0 and record(tmp_path)['processes']==2, p.stderr[-2000:]

def run(n, *words):
    "A run in `n` processes of `scale_worker.py`"
    start = [sys.executable,'-W','ignore'] if n==1 else [*torchrun,str(n)]
    p = subprocess.run([*map(str, (*start, worker, 'run', *words))], env=env, capture_output=True, text=True, timeout=600)
    return p.returncode,p.stderr[-2000:]

def run_to_the_end(*args):
    rc,err = run(*args)
    assert rc==0, err

def files(out): return {o.suffix:o for o in out.iterdir() if o.suffix}

long = pytest.mark.long
@pytest.mark.parametrize('opt,before,after', [('muon',2,2), *(pytest.param('sgd', *o, marks=long) for o in ((1,2),(2,1),(3,2)))])
def test_a_run_that_is_stopped_is_the_whole_run(opt, before, after, drawn, tmp_path):
    """As Composer and torchtitan test their own: each process begins with the whole state that was saved, at tolerance 0. What as
    many processes make of it is the run that was never stopped, to the bit; what more or fewer make is as near as sums round"""
    rc,err = run(before, drawn, out:=tmp_path/'stopped', opt, 1)
    assert rc, err
    saved = torch.load(files(out)['.pt'], weights_only=True)
    assert (saved['epoch'],saved['iter'])==(1,2)
    run_to_the_end(after, drawn, out, opt)
    began = [torch.load(o, weights_only=True) for o in sorted(out.glob('began*'))]
    assert len(began)==after and all(same(o, saved) for o in began)
    run_to_the_end(before, drawn, whole:=tmp_path/'whole', opt)
    ends = [torch.load(files(o)['.pt'], weights_only=True) for o in (out,whole)]
    if before==after: assert same(*ends) and files(out)['.safetensors'].read_bytes()==files(whole)['.safetensors'].read_bytes()
    else:
        for k,w in ends[1]['model'].items(): assert (ends[0]['model'][k]-w).abs().max() <= 1e-4*w.abs().max(), k

def test_a_larger_batch_says_so(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '4')
    new = for_many(recipe('tiny'))
    assert (new.bs, new.lr, new.name)==(64, recipe('tiny').lr*2, 'tiny-x4')
    assert 'batches of 64 in place of 16' in capsys.readouterr().out

@pytest.mark.long
def test_a_notebook_starts_them(tmp_path):
    "Accelerate copies the process; that of a lesson's test, which captures what is printed, cannot be copied"
    code = f"""import torch
from accelerate import notebook_launcher
from resnet_course.recipe import recipe, train
from resnet_course.data import course_path
from resnet_course.scale import joined
def in_two():
    torch.set_num_threads(1)
    with joined() as cbs: train(course_path('sample'), recipe('tiny'), epochs=1, out={str(tmp_path)!r}, precision='fp32', cbs=cbs)
notebook_launcher(in_two, num_processes=2)"""
    p = subprocess.run([sys.executable,'-W','ignore','-c',code], env=env, capture_output=True, text=True, timeout=600)
    assert p.returncode==0 and record(tmp_path)['processes']==2, p.stderr[-2000:]
