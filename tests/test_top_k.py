"Top-k accuracy: as scikit-learn has it where that is defined, and one true line elsewhere"
import pytest, torch
from fastai.vision.all import *
from sklearn.metrics import top_k_accuracy_score
from resnet_course.training import top_k_accuracy
from conftest import one_line

def scores(n=60, c=7): return torch.randn(n, c, generator=torch.Generator().manual_seed(0)),torch.arange(n)%c

@pytest.mark.filterwarnings('ignore:.k. .7. greater')   # scikit-learn says so of all classes, and that is 1
@pytest.mark.parametrize('k', [1,2,6,7,8,1000])
def test_as_scikit_learn(k):
    inp,targ = scores()
    want = top_k_accuracy_score(targ, inp.numpy(), k=min(k,7), labels=range(7))
    for y in (targ, targ.int(), targ.byte(), TensorCategory(targ)):
        assert top_k_accuracy(inp, y, k).item()==pytest.approx(want)
    for f in (torch.bfloat16, torch.float16, torch.float64):
        x = inp.to(f)
        want = top_k_accuracy_score(targ, x.double().numpy(), k=min(k,7), labels=range(7))
        assert top_k_accuracy(x, targ, k).item()==pytest.approx(want)
    assert top_k_accuracy(inp.argsort().argsort(), targ, np.int64(k)).item()==pytest.approx(top_k_accuracy(inp, targ, k).item())

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('k', [1,2,7,8,1000])
def test_what_is_no_number_is_never_right(k, dtype):
    inp,targ = scores()
    inp = inp.to(dtype)
    def right(inp, targ, k): return round(top_k_accuracy(inp, targ, k).item()*len(targ))
    assert right(inp*np.nan, targ, k)==0
    rest,others = inp[20:].clone(),targ[20:]
    inp[:20] = np.nan
    assert right(inp, targ, k)==right(rest, others, k)
    inp[20:,3] = np.nan   # in one class: it takes one guess from each row, and is never right
    rest[:,3] = -np.inf
    assert right(inp, targ, k)==(0 if k==1 else right(rest, others, k-1) if k<8 else (others!=3).sum())

def test_equal_scores():
    ties = torch.tensor([[1.,1.,1.,0.]])
    assert [top_k_accuracy(ties, torch.tensor([t]), 1).item() for t in range(4)]==[1,1,1,0]
    assert [top_k_accuracy(ties, torch.tensor([3]), k).item() for k in (3,4)]==[0,1]

def test_infinite_scores():
    inp = torch.tensor([[np.inf,0.,-np.inf]])
    assert [[top_k_accuracy(inp, torch.tensor([t]), k).item() for k in (1,2,3)] for t in range(3)]==[[1,1,1], [0,1,1], [0,0,1]]

@pytest.mark.parametrize('k', [0, -1, 1.5, .5])
def test_no_guess(k):
    with pytest.raises(Exception) as err: top_k_accuracy(*scores(), k)
    assert one_line(err, f'k is {k}', '1 or more')

@pytest.mark.parametrize('targ, said', [([0,7], 'class 7 is none of the 7'), ([-1,0], 'class -1 is none'), ([-100,7], 'class -100')])
def test_classes_that_are_none(targ, said):
    with pytest.raises(Exception) as err: top_k_accuracy(scores(2)[0], torch.tensor(targ))
    assert one_line(err, said, 'from 0 to 6')

@pytest.mark.parametrize('inp, targ', [((4,7),(4,7)), ((4,7),(4,1)), ((4,7),(3,)), ((4,7),(1,)), ((4,7),()), ((7,),()), ((4,7,2,2),(4,2,2))])
def test_other_shapes(inp, targ):
    with pytest.raises(Exception) as err: top_k_accuracy(torch.zeros(inp), torch.zeros(targ).long())
    assert one_line(err, '(bs, c)', str(inp), str(targ))

def test_targets_that_are_no_numbers_of_classes():
    with pytest.raises(Exception) as err: top_k_accuracy(torch.zeros(4,7), torch.zeros(4))
    assert one_line(err, 'class numbers', 'float32')

def test_nothing_to_count():
    with pytest.raises(Exception) as err: top_k_accuracy(torch.zeros(0,7), torch.zeros(0).long())
    assert one_line(err, 'no rows')
