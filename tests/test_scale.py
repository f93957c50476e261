"Several processes of one run: they see each photo once, make one process's step, agree, and end together"
import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from resnet_course.data import course_path
from resnet_course.kit.ranks import from_first, gathered, most, rank, together, total
from resnet_course.loading import cached_data
from resnet_course.recipe import recipe, recipe_data, replace
from resnet_course.scale import for_many, joined, restarted

worker = Path(__file__).with_name('scale_worker.py')
torchrun = [sys.executable,'-W','ignore','-m','torch.distributed.run','--standalone','--nproc_per_node']
env = dict(os.environ, OMP_NUM_THREADS='1')

def run(n, job, tmp_path):
    file = tmp_path/f'{job}-{n}.pt'
    start = [*torchrun, str(n)] if n>1 else [sys.executable]
    p = subprocess.run([*start, worker, job, file], env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode==0, p.stderr[-2000:]
    return torch.load(file, weights_only=False)

def test_alone():
    with joined() as cbs: assert cbs==[] and not together() and rank()==0
    assert (most(2, 3), total(2, 3), gathered('a'), from_first(lambda: 1)) == ([2,3], [2,3], ['a'], 1)
    assert not restarted()

def test_many_agree(tmp_path):
    said = run(3, 'talk', tmp_path)
    assert said==dict(together=True, first=0, most=[2,0], total=[3,3], ranks=[0,1,2], errors=['the first process has found nothing']*3)

def test_rows_are_shared_out(tmp_path):
    want, = run(1, 'share', tmp_path)['rows']
    for n in (2,3): assert all(torch.equal(o, want) for o in run(n, 'share', tmp_path)['rows'])

@pytest.mark.parametrize('n', [2,3,5])
def test_parts_make_the_whole(n):
    "The parts of a batch are the batch, pixel for pixel, in training and in validation; also where photos are not kept"
    r = replace(recipe('tiny'), bs=16, flip='alternating')
    for dl in (lambda: recipe_data(course_path('sample'), r).train, lambda: recipe_data(course_path('sample'), r).valid,
               lambda: cached_data(course_path('sample'), 40, 32, 16, cache=False).train):
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
    n = len(dl.dataset)
    for left in (1,2,3):
        sizes = [len(o) for o in dl._batches(list(range(64+left)))]
        assert sum(sizes)==64+left and min(sizes)>=3
    assert n

@pytest.fixture(scope='module')
def alone(tmp_path_factory): return run(1, 'step', tmp_path_factory.mktemp('alone'))

@pytest.mark.parametrize('n', [2,3])
def test_a_step_is_that_of_one_process(n, alone, tmp_path):
    "Also where the batch does not divide, with batch norm over the whole batch; weights are equal over processes to the bit"
    many = run(n, 'step', tmp_path)
    assert len(many['sums'])==n and len(set(many['sums']))==1
    assert many['loss']==pytest.approx(alone['loss'], rel=1e-5)
    for k,g in alone['grads'].items(): assert (many['grads'][k]-g).abs().max() <= 1e-4*g.abs().max()+1e-7, k
    assert many['said']==pytest.approx(many['whole'], rel=1e-5) and many['said']==pytest.approx(alone['said'], abs=.02)
    assert many['parts']==[(0,1)]*2 and many['kinds']==alone['kinds']   # all is put back

def test_muon_is_shared_out(tmp_path):
    one,two = (run(n, 'muon', tmp_path) for n in (1,2))
    assert len(set(two['sums']))==1 and two['sums'][0]==pytest.approx(one['sums'][0], rel=1e-3)

train = ['-m','resnet_course','train','--recipe','tiny','--data','sample','--precision','fp32','--epochs']

def record(out): return json.loads(next(out.glob('*.json')).read_text())

def test_a_lost_process_ends_the_others_and_more_go_on(tmp_path):
    "In one line, in bounded time; another number of processes goes on from the checkpoint, and there is one record"
    out = tmp_path/'runs'
    p = subprocess.Popen([*torchrun,'2',*train,'3','--out',out], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ckpt = lambda: list(out.glob('*.pt'))
    for _ in range(1200):
        if ckpt() or p.poll() is not None: break
        time.sleep(.1)
    pids = subprocess.run(['pgrep','-P',str(p.pid)], capture_output=True, text=True).stdout.split()
    assert ckpt() and len(pids)==2
    os.kill(int(pids[1]), signal.SIGKILL)
    err = p.communicate(timeout=120)[1]
    assert p.returncode and 'SIGKILL' in err
    done = subprocess.run([*torchrun,'3',*train,'3','--out',out,'--resume'], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode==0, done.stderr[-2000:]
    rec = record(out)
    assert rec['complete'] and len(rec['history'])==3 and len(list(out.glob('*.json')))==1
    assert [o.get('processes', 1) for o in rec['parts']]==[2,3]

def test_a_larger_batch_says_so(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '4')
    new = for_many(recipe('tiny'))
    assert (new.bs, new.lr, new.name)==(64, recipe('tiny').lr*2, 'tiny-x4')
    assert 'batches of 64 in place of 16' in capsys.readouterr().out
