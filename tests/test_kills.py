"A run that is killed again and again, anywhere, ends as if it had not been. `make test-slow` kills more often"
import multiprocessing, os, random, signal, sys
from contextlib import suppress
import torch
from fastai.vision.all import *
from resnet_course.kit.files import load_json
from resnet_course.kit.runs import measured_fit
from resnet_course.kit.weights import save_weights
from conftest import same, slow, tiny_learner

kills = 200 if slow else 12
name,epochs = 'a.json',3
processes = multiprocessing.get_context('forkserver')   # which has imported all once: a new process is there at once
processes.set_forkserver_preload(['test_kills'])

def work(data, out):
    "The run, from wherever it is, with a checkpoint after each batch"
    os.chdir(out)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    def keep(learn, rec, file): save_weights(Path('a.safetensors'), learn.model)
    with suppress(KeyboardInterrupt):
        measured_fit(tiny_learner(Path(data)), epochs, 1e-2, Path(name), resume=True, minutes=0, after=keep,
                     makes=[Path('a.safetensors')], model='fcn', recipe='small', size=32, seed=42)

def started(data, out):
    p = processes.Process(target=work, args=(str(data),str(out)))
    p.start()
    return p

def ended(out):
    "All that a run leaves, read back"
    assert sorted(o.name for o in out.iterdir())==['a.json','a.pt','a.safetensors'], [o.name for o in out.iterdir()]
    rec = load_json(out/name)
    assert rec['complete']
    return torch.load(out/'a.pt', weights_only=True),rec['history'],rec['accuracy'],(out/'a.safetensors').read_bytes()

def test_killed_again_and_again(drawn, tmp_path, faults):
    rng,runs,how_many = random.Random(1),0,Counter()
    def place(i):
        (o:=tmp_path/str(i)).mkdir()
        return o
    p = started(drawn, whole:=place('whole'))
    start = time.monotonic()
    p.join()
    length,expected = time.monotonic()-start,ended(whole)
    while sum(how_many.values())<kills:
        out,of_this = place(runs),Counter()
        while True:
            p,start = started(drawn, out),time.monotonic()
            p.join(rng.uniform(0, 1.3*length))
            if p.exitcode is not None:
                if not of_this: length = min(length, time.monotonic()-start)   # the machine may have had other work before
                break
            how = rng.choice([signal.SIGKILL,signal.SIGKILL,signal.SIGTERM])
            os.kill(p.pid, how)
            p.join(60)
            of_this[how.name] += 1
        runs,n = runs+1,of_this.total()
        how_many += of_this
        unharmed = p.exitcode==0 and same(ended(out), expected)
        faults('a run is killed', n, n*unharmed, runs=runs, by=how_many, epochs=epochs)
        assert unharmed
