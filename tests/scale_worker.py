"""What each process of a run does in test_scale.py: `torchrun scale_worker.py FILE`; the first one writes what came of it.
`scale_worker.py command MINUTES ...` is the course's command, whose processes wait so long for each other;
`scale_worker.py run DATA OUT OPT [BATCH]` a run that goes on from its checkpoint, or stops after a batch"""
import signal, sys
from fastai.vision.all import *
from resnet_course.data import course_path
from resnet_course.kit.files import CourseError
from resnet_course.kit.checkpoint import _gather, _random_states
from resnet_course.kit.identity import in_tensors
from resnet_course.kit.ranks import from_first, gathered, most, rank, together, total, world
from resnet_course.recipe import recipe, recipe_learner, replace, train
from resnet_course.scale import joined, Scaled, shared_out

def refuse(): raise CourseError('the first process has found nothing')

def talk(cbs):
    try: from_first(refuse)
    except CourseError as e: error = str(e)
    return dict(together=together(), first=from_first(lambda: rank()), most=most(rank(), -rank()), total=total(1, rank()),
                errors=gathered(error), ranks=gathered(rank()))

class FirstStep(Callback):
    "Keeps the first step's loss and gradients, and ends the fit after a few"
    order = 70
    def before_step(self):
        if self.iter==0: self.grads,self.first = {n:p.grad.clone() for n,p in self.model.named_parameters()},self.loss.item()
    def after_batch(self):
        if self.training and self.iter==2: raise CancelTrainException

def step(cbs, **changes):
    learn = recipe_learner(course_path('sample'), replace(recipe('tiny'), **changes), 42, None, 'fp32')
    learn.add_cb(FirstStep())
    with learn.no_bar(): learn.fit(1, 1e-3, cbs=cbs)
    said = list(learn.recorder.values[-1][-2:])   # what follows is noted there too
    weights = torch.cat([o.detach().flatten().double() for o in learn.model.state_dict().values()])
    probs,targs = learn.get_preds()
    return dict(grads=learn.first_step.grads, loss=learn.first_step.first, sums=gathered((weights.sum().item(), weights.norm().item())),
                said=said, whole=[F.nll_loss(probs.log(), targs).item(), accuracy(probs, targs).item()],
                parts=[dl.part for dl in learn.dls.loaders], kinds=[type(m).__name__ for m in learn.model.modules()])

def share(cbs):
    x = torch.arange(15.).view(5,3)
    return dict(rows=gathered(shared_out(lambda o: o*2+1, x)) if together() else [x*2+1])

class Look(Callback):
    "Keeps the state that a process has before the first batch that it trains, as a checkpoint of it would be"
    order = 9   # before the net is wrapped
    def __init__(self, out): self.out = out
    def before_batch(self):
        if not self.training or (file:=self.out/f'began{rank()}').exists(): return
        ckpt = self.checkpoint
        torch.save(in_tensors(_gather(ckpt, self.epoch, ckpt.done, _random_states(self.dls))), file)

class Stop(Callback):
    "The last process is asked to end after a batch of the second epoch"
    def __init__(self, batch): self.batch = batch
    def after_batch(self):
        if self.training and (self.epoch,self.iter,rank())==(1,self.batch,world()-1): os.kill(os.getpid(), signal.SIGTERM)

def run(data, out, opt, stop=None):
    torch.set_num_threads(1)
    with joined() as cbs:
        mine = [Stop(int(stop))] if stop else [Look(Path(out))]
        train(Path(data), replace(recipe('tiny'), opt=opt), epochs=2, out=out, precision='fp32', resume=True, cbs=[*cbs,*mine])

jobs = dict(talk=talk, step=partial(step, opt='sgd', smoothing=0.), apart=partial(step, opt='sgd', smoothing=0.),
            muon=partial(step, smoothing=0.), share=share)
if __name__=='__main__' and sys.argv[1]=='command':
    from resnet_course import cli, scale
    scale.joined = partial(joined, minutes=float(sys.argv[2]))
    sys.argv = ['resnet_course', *sys.argv[3:]]
    cli.main()
elif __name__=='__main__' and sys.argv[1]=='run': run(*sys.argv[2:])
elif __name__=='__main__':
    with joined():
        res = {k:f([Scaled(sync_bn=k!='apart')]) for k,f in jobs.items()}
        if rank()==0: torch.save(res, sys.argv[1])
