"The bench runs whole in a tiny form, keeps what is finished, and judges by its own rows"
import json, sys
import pytest, torch
from fastai.vision.all import *
from resnet_course import bench as benchmark
from resnet_course.kit.results import results, show_table
from resnet_course.kit.timing import peak_memory
from resnet_course.fcn import get_fcn
from resnet_course.bench import _Pace, bench, bench_results, bench_rows, bench_targets
from conftest import one_line, photo_set, tiny_learner

@pytest.fixture(scope='module')
def records(drawn, tmp_path_factory):
    "Every part but that of memory, with tiny sizes"
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('bench')
    return out,bench('abcdfg', drawn, repeats=1, out=out, quick=True)

def rows(records, part): return records[1][part]['rows']
def test_files(records):
    "In the benchmarks' format, one a part, the same as was returned"
    out,recs = records
    assert [o.stem for o in out.ls().sorted()]==['a-steps','b-epochs','c-loading','d-limits','f-growth','g-floors']
    assert bench_results(out)==recs
    for name,rec in recs.items():
        assert {'name','rows','hardware','versions','commit','data','repeats','command'}<=rec.keys()
        assert rec['data']['name']=='sample' and rec['repeats']==1 and len(rec['data']['fingerprint'])==16
        assert 'NaN' not in json.dumps(rec)
        for r in rec['rows']:
            if name=='floors': assert {'what','median','unit','floor'}<=r.keys()
            else: assert {'what','median','unit','ratio','spread'}<=r.keys() and isinstance(r['median'], float)

def test_steps(records):
    pytest.importorskip('timm')
    d = pd.DataFrame(rows(records, 'steps'))
    whats = {net:set(o.what) for net,o in d.groupby('net')}
    chapter = "chapter 14's fp32 step"
    assert whats=={'resnet18':{'course',chapter,'timm resnet18d','fastai xresnet18'},
                   'resnet50':{'course',chapter,'timm resnet50d','fastai xresnet50'},
                   'resnet_b(18)':{'course','torchvision resnet18'}, 'resnet_b(50)':{'course','torchvision resnet50'}}
    for _,o in d.groupby('net'):
        base = o[o.what.isin([chapter,'torchvision resnet18','torchvision resnet50'])].iloc[0]
        assert base.ratio==1 and np.allclose(o.ratio, o['median']/base['median'])

def test_epochs_and_loading(records):
    pytest.importorskip('timm')
    names = {'chapter 14 as printed','fastai, tuned',"plain loop, timm's loader","course, chapter's transforms",
             'course, crop and flip'}
    d = pd.DataFrame(rows(records, 'epochs'))
    e = d[d.unit=='s/epoch']
    for net in ('fcn','resnet18'): assert set(e[e.net==net].what)==names
    expected = 64/e.train_rate + 24/e.valid_rate   # 64 photos to train on, 24 to validate
    assert np.allclose(e['median'], expected)
    parts = d[d.what=='profile: course, crop and flip'].parts
    assert len(parts)==2 and all({'waiting for data','forward','optimiser','validation'}<=o.keys() for o in parts)
    loading = {r['what'] for r in rows(records, 'loading')}
    assert loading==names|{'course, crop and flip, decoded anew'}

def test_limits_and_growth(records):
    d = pd.DataFrame(rows(records, 'limits')).set_index('what')
    assert {'bf16','fp32','copy','fcn','resnet18','resnet50'}==set(d.index)
    for net in ('fcn','resnet18','resnet50'):
        assert any(math.isclose(d.share[net], d['median'][net]/d['median'][p]) for p in ('bf16','fp32'))
    g = pd.DataFrame(rows(records, 'growth'))
    assert (g[g.what=='exponent'].grows==['image size','depth','data']).all()
    for what,o in g.groupby('grows'):
        o = o[o.what!='exponent']
        assert len(o)>1 and o.work.is_monotonic_increasing
        slope = np.polyfit(np.log(o.work.astype(float)), np.log(o['median']), 1)[0]
        assert math.isclose(slope, g[(g.grows==what) & (g.what=='exponent')]['median'].iloc[0], abs_tol=1e-6)

def test_floors(records):
    "A step's is the sum of those of its parts"
    for _,o in pd.DataFrame(rows(records, 'floors')).groupby('net'):
        step = o[o.what=='step'].iloc[0]
        assert math.isclose(step.floor, o[o.what!='step'].floor.sum())
        assert math.isclose(step.times_the_floor, step['median']/step.floor)

def test_photos_of_more_classes_than_ten(tmp_path, monkeypatch):
    "And no more than a thousand, so that the bench makes its own steps"
    names = [f'c{i:02d}' for i in range(12)]
    path = photo_set(tmp_path/'many', names, names, n=2)
    monkeypatch.setattr(benchmark, '_fitted', lambda b, what, steps, work: iter([(what, work, steps)]))
    *_,(what,work,steps) = benchmark._growth(benchmark._Bench(path, 1, True))
    assert (what, work, list(steps))==('data', [6,24], ['6 photos','24 photos'])
    for f in steps.values(): f()
    benchmark._short_epoch(path, True)

def test_tables_and_targets(records):
    for rec in records[1].values():
        t = show_table(bench_rows(rec))
        assert len(t)==len(rec['rows']) and not t.astype(str).isin(['nan','None','<NA>']).any().any()
    t = bench_targets(records[1])
    assert list(t.part)==sorted(t.part) and set(t.part)==set('abcdfg') and t.met.map(lambda o: o in (True,False)).all()

def test_resume(records, monkeypatch, drawn):
    out,recs = records
    monkeypatch.setattr(benchmark, 'machine_peaks', lambda *_: 1/0)
    assert bench('cd', drawn, repeats=1, out=out, quick=True, resume=True)=={k:recs[k] for k in ('loading','limits')}
    with pytest.raises(ZeroDivisionError): bench('d', drawn, repeats=1, out=out, quick=True)
    for other in (dict(repeats=2, quick=True), dict(repeats=1, quick=False)):   # it is of another bench
        with pytest.raises(ZeroDivisionError): bench('d', drawn, out=out, resume=True, **other)
    assert bench_results(out)==recs   # the old record is still whole

def test_a_part_that_fails_keeps_the_finished_ones(drawn, monkeypatch):
    monkeypatch.setitem(benchmark._parts, 'memory', lambda b: iter([row('a', 1.)]))
    monkeypatch.setitem(benchmark._parts, 'growth', lambda b: iter([1/0]))
    with pytest.raises(ZeroDivisionError): bench('ef', drawn, out='b', quick=True)
    assert [o.name for o in Path('b').ls()]==['e-memory.json']

def test_unknown_part():
    with pytest.raises(Exception) as e: bench('abx', out='b')
    assert one_line(e, "'x'", 'a, b, c, d, e, f') and not Path('b').exists()

@pytest.mark.parametrize('read', [bench_results, results])
def test_no_records_here(read):
    "As where a lesson was taken out of the repository: it stops at a line that says where the records are"
    with pytest.raises(Exception) as e: read('../results/ladder')
    assert one_line(e, '../results/ladder', 'clone it', 'resnet_course')
    Path('empty').mkdir()
    assert len(read('empty'))==0

def test_without_timm(drawn, monkeypatch, capsys):
    for o in ('timm','timm.data'): monkeypatch.setitem(sys.modules, o, None)
    assert not [k for k in benchmark._loaders(benchmark._Bench(drawn, 1, True)) if 'timm' in k]
    assert 'timm is not installed' in capsys.readouterr().out

class Grows:
    "Stands in for a process: how much each of its looks takes, its own pages and those that it shares with its child"
    def __init__(self, sizes, child=None, shares=True):
        self.sizes,self.child,self.shares = iter(sizes),child,shares
        self.returncode = 0
    def poll(self):
        self.now = next(self.sizes, None)
        return 0 if self.now is None else None
    def children(self, recursive): assert recursive; return [self.child] if self.child else []
    def memory_full_info(self):
        if self.now=='gone': raise RuntimeError('no such process')
        return SimpleNamespace(uss=self.now, **(dict(pss=self.now+1) if self.shares else {}))

@pytest.mark.parametrize('shares', [True, False])
def test_the_most_memory(monkeypatch, shares):
    "The largest sum of a process and its children at one look; one that has just ended is passed over"
    child = Grows([], shares=shares)
    child.now = 100
    for sizes,kids,most in (([3,9,4],None,9+shares), ([5,'gone',2],None,5+shares), ([1,7],child,107+2*shares)):
        p = Grows(sizes, kids, shares)
        monkeypatch.setitem(sys.modules, 'psutil', SimpleNamespace(Popen=lambda *a, **k: p, Error=RuntimeError))
        monkeypatch.setattr(time, 'sleep', noop)
        assert peak_memory('pass')==most

@pytest.mark.parametrize('code, says', [('import os; os.kill(os.getpid(), 9)', 'exit status -9'),   # memory is short
                                        ('raise ValueError("this one")', 'this one')])
def test_measuring_memory_fails(code, says):
    pytest.importorskip('psutil')
    with pytest.raises(Exception) as e: peak_memory(code)
    assert one_line(e, says)

def test_a_program_that_says_much_is_measured():
    pytest.importorskip('psutil')
    assert peak_memory("import sys; sys.stderr.write('x'*10**6)") is not None

def test_memory_part(drawn, monkeypatch):
    "What each process would run does run, and photos that are mapped into memory have a row of their own"
    ran = []
    def run(code): exec(code, {}); ran.append(code); return 3e9
    monkeypatch.setattr(benchmark, 'peak_memory', run)
    d = {r['what']:r['median'] for r in benchmark._memory(benchmark._Bench(drawn, 1, True))}
    assert len(ran)==2 and all(str(drawn) in o for o in ran)
    pixels = 88*32*32*3/1e9   # the file has its list of photos, too
    assert d=={'chapter 14 as printed':3., 'course':3., 'cache of photos':pytest.approx(pixels, rel=.05)}

def test_memory_without_psutil(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'psutil', None)
    assert peak_memory('') is None and 'psutil' in capsys.readouterr().out

def test_pace(monkeypatch, drawn):
    "The first batch does not count; a phase ends when its time is over"
    now = [0.]
    def run(limit, seconds):
        pace = _Pace(limit)
        pace.begin()
        for s in seconds:
            now[0] += s
            if pace.enough(10): break
        pace.end()
        return len(pace.counts),pace.seconds[0]
    with monkeypatch.context() as m:
        m.setattr(time, 'perf_counter', lambda: now[0])
        assert run(5, [100,2,2,2,2,2])==(4, .2) and run(99, [100,2,4])==(3, .3) and run(0, [7])==(1, .7)
    learn,pace = tiny_learner(drawn),_Pace(0.)
    learn.fit(1, cbs=pace)
    assert len(pace.seconds)==2 and learn.opt.state_dict()['state'][0]['step']==2

class Wait(nn.Module):
    "A net that takes a second for a batch to train on, and half of one to validate, on the clock `now`"
    def __init__(self, now): super().__init__(); self.now,self.lin = now,nn.Linear(3,10)
    def forward(self, x):
        self.now[0] += 1 if self.training else .5
        return self.lin(x.mean((2,3)))

def test_an_epochs_seconds(drawn, monkeypatch):
    "Per image, whoever trains the net: batches of 16 to train on, one of 24 to validate"
    now = [0.]
    b = benchmark._Bench(drawn, 1, True)
    loaders = benchmark._loaders(b)
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    for what,dls in loaders.items():
        assert benchmark._epoch(b, what, dls, Wait(now))==pytest.approx([1/16, .5/24]), what

@pytest.mark.parametrize('error', [None, RuntimeError('no compiler')])
def test_compiled(error, drawn, monkeypatch, capsys):
    "With a stand-in for `torch.compile`, which takes a minute"
    seen = []
    def hook(*args):
        seen.append(args)
        if error: raise error
    monkeypatch.setattr(nn.Module, 'compile', lambda self: self.register_forward_pre_hook(hook))
    b = benchmark._Bench(drawn, 1, True)
    step = b.compiled(get_fcn(10, widths=(8,)), lambda m: torch.optim.SGD(m.parameters(), lr=.1), b.batch(16, 2))
    assert seen and (step is None)==bool(error)
    assert ('its row is left out' in capsys.readouterr().out)==bool(error)

def targets_of(**recs): return bench_targets({k:dict(rows=v) for k,v in recs.items()})
def row(what, median, ratio=None, **about):
    return dict(what=what, median=median, unit='', spread=.1, ratio=ratio, **about)
def met(t): return t.met.tolist()

def test_targets():
    step = lambda course: [row("chapter 14's fp32 step", 10, 1, net='resnet18', size=128),
        row('timm resnet18d', 40, 4, net='resnet18', size=128),
        row('course', course, course/10, net='resnet18', size=128)]
    assert met(targets_of(steps=step(41)))==[True,True] and met(targets_of(steps=step(39)))==[False,True]
    assert met(targets_of(steps=step(29)))==[False,False]
    limits = lambda share: [row('bf16', 1.), dict(row('resnet18', share), share=share)]
    assert met(targets_of(limits=limits(.66)))==[True] and met(targets_of(limits=limits(.64)))==[False]
    memory = lambda gb: [row('chapter 14 as printed', 2.), row('course', gb), row('cache of photos', 1.)]
    assert met(targets_of(memory=memory(2.9)))==[True] and met(targets_of(memory=memory(3.1)))==[False]
    growth = [row('exponent', o, grows=k) for k,o in dict(size=1.14, depth=.86, data=1.2).items()]
    assert met(targets_of(growth=growth))==[True,True,False]
    loading = lambda a,b: [row("course, chapter's transforms", 1, a), row('course, crop and flip', 1, b)]
    assert met(targets_of(loading=loading(1.9,5.1)))==[True,True]
    assert met(targets_of(loading=loading(1.7,4.9)))==[False,False]
    def epochs(a, b, c, other, waiting):
        e = [dict(row(w, 60/r, r, net=n), unit='s/epoch') for n,rs in (('fcn',(a,b)), ('resnet18',(c,c)))
             for w,r in zip(("course, chapter's transforms",'course, crop and flip'), rs)]
        e += [dict(row('fastai, tuned', 60/other, other, net=n), unit='s/epoch') for n in ('fcn','resnet18')]
        parts = {'waiting for data':waiting, 'forward':1}
        return e+[dict(row('profile: course, crop and flip', 1, net='resnet18'), parts=parts)]
    assert met(targets_of(epochs=epochs(2,4,3,2,.01)))==[True]*6
    assert met(targets_of(epochs=epochs(1,3,2,5,.1)))==[False]*6
