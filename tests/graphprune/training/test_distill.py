import numpy as np
import pytest
import torch

from graphprune.importance.output_loss import (
    Form,
    OutputLoss,
    describe_forms,
    flatten_outputs,
    forms_of,
    mutual_loss,
    spreads_of,
)
from graphprune.passes.errors import UsageError
from graphprune.training.distill import FeatureLoss


def test_outputs_are_found_in_any_structure():
    a, b, c = torch.zeros(1), torch.ones(2), torch.arange(3)
    assert [len(t) for t in flatten_outputs({"x": [a, (b,)], "indices": c, "name": None})] == [1, 2]


@pytest.mark.parametrize(
    ("outputs", "setting", "kind"),
    [
        ([torch.randn(4, 10)], "auto", "logits"),
        ([torch.randn(4, 10).softmax(1)], "auto", "probabilities"),
        ([torch.randn(4, 1)], "auto", "values"),
        ([torch.randn(4, 10), torch.randn(4, 10)], "auto", "values"),
        ([torch.randn(4, 3, 8, 8)], "auto", "values"),
        ([torch.randn(4, 3, 8, 8)], "kl", "logits"),
        ([torch.randn(4, 10)], "mse", "values"),
    ],
)
def test_the_kind_of_output_follows_from_its_shape_and_values(outputs, setting, kind):
    assert [form.name for form in forms_of(outputs, setting)] == [kind] * len(outputs)


@pytest.mark.parametrize("shape", [(4,), (4, 1), ()])
def test_classes_are_not_compared_where_there_are_none(shape):
    with pytest.raises(
        UsageError, match=r"`output_loss=.kl.` compares classes, and .* shape \(.*\), not \(batch"
    ) as caught:
        forms_of([torch.randn(4, 10), torch.randn(shape)], "kl")
    assert "\n" not in str(caught.value)


def test_a_guess_says_how_to_say_otherwise():
    assert describe_forms([Form("logits")], "auto") == 'class logits; `output_loss="mse"` if they are numbers'
    assert describe_forms([Form("values")], "auto") == 'numbers; `output_loss="kl"` if they are class logits'
    assert describe_forms([Form("probabilities")], "kl") == "class probabilities"


def test_the_divergence_is_that_of_the_definition():
    torch.manual_seed(0)
    teacher, student = torch.randn(6, 10), torch.randn(6, 10)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    loss = OutputLoss([Form("logits")], 3.0)
    assert float(loss([teacher], [student])) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss([teacher], [teacher])) == pytest.approx(0.0, abs=1e-6)
    assert float(loss([teacher], [teacher + 5])) == pytest.approx(0.0, abs=1e-5)  # softmax ignores a shift


def test_probabilities_are_compared_like_the_logits_they_come_from():
    torch.manual_seed(0)
    teacher, student = torch.randn(6, 10), torch.randn(6, 10)
    logits = OutputLoss([Form("logits")], 2.0)([teacher], [student])
    probabilities = OutputLoss([Form("probabilities")], 2.0)([teacher.softmax(1)], [student.softmax(1)])
    assert float(probabilities) == pytest.approx(float(logits), rel=1e-4)


def test_other_outputs_are_compared_relative_to_their_own_spread():
    torch.manual_seed(0)
    small, large = torch.randn(8, 3), 1000 + 100 * torch.randn(8, 4)
    loss = OutputLoss([Form("values")] * 2, 1.0, spreads_of([[small[:3], large[:3]], [small[3:], large[3:]]]))
    assert loss.spreads == pytest.approx([float(t.double().var(correction=0)) for t in (small, large)], rel=1e-5)
    error_of_a_tenth = loss([small, large], [small + 0.1 * small.std(), large + 0.1 * large.std()])
    assert float(error_of_a_tenth) == pytest.approx(0.01, rel=0.1)
    assert float(loss([small, large], [small, large])) == 0.0


def test_no_gradient_reaches_the_target():
    teacher = torch.randn(4, 5, requires_grad=True)
    student = torch.randn(4, 5, requires_grad=True)
    OutputLoss([Form("logits")], 1.0)([teacher], [student]).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_agreement_counts_equal_classes():
    loss = OutputLoss([Form("logits")], 1.0)
    teacher = torch.eye(4)
    student = torch.eye(4)[[0, 1, 3, 2]]
    assert loss.agreement(loss.answer([teacher]), [student]) == 0.5
    values = OutputLoss([Form("values")], 1.0, spreads_of([[teacher]]))
    assert values.agreement(values.answer([teacher]), [teacher]) == 1.0
    assert values.agreement(values.answer([teacher]), [teacher + 10]) == 0.0


def test_feature_loss_is_the_distance_of_the_normalized_features():
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 6, 4, 4), torch.randn(5, 6, 4, 4)
    t, s = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (teacher, student))
    loss = FeatureLoss([(1, np.arange(6))], 6)
    assert float(loss([teacher], [student])) == pytest.approx(float((t - s).square().sum(1).mean()), rel=1e-5)
    assert float(loss([teacher], [3 * teacher])) == pytest.approx(0.0, abs=1e-5)


def test_feature_loss_looks_at_the_kept_channels_only():
    torch.manual_seed(0)
    teacher = torch.randn(5, 6, 4, 4)
    student = teacher.clone()
    student[:, [1, 4]] = 7.0
    loss = FeatureLoss([(1, np.array([-1, 0, 1, 2, 3, 3]))], 4)
    assert float(loss([teacher], [student])) > 0.1
    loss.keep(torch.tensor([False, True, True, False]))
    assert float(loss([teacher], [student])) == pytest.approx(0.0, abs=1e-5)
    student[:, 0] = 7.0  # a channel of no group always counts
    assert float(loss([teacher], [student])) > 0.1


def test_feature_loss_of_other_layouts():
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 4, 4, 6), torch.randn(5, 4, 4, 6)
    last = FeatureLoss([(3, np.arange(6))], 6)
    first = FeatureLoss([(1, np.arange(6))], 6)
    for loss in (last, first):
        loss.keep(torch.tensor([True, False, True, True, False, True]))
    moved = [x.permute(0, 3, 1, 2) for x in (teacher, student)]
    assert float(last([teacher], [student])) == pytest.approx(float(first([moved[0]], [moved[1]])), rel=1e-5)
    flat = FeatureLoss([(1, np.arange(6))], 6)
    flat.keep(torch.ones(6, dtype=torch.bool))
    assert float(flat([teacher[:, 0, 0]], [teacher[:, 0, 0]])) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_feature_loss_and_its_gradient_are_those_of_the_formula(layout, dim):
    torch.manual_seed(0)
    teacher = torch.randn(4, 6, 6, 6, dtype=torch.float64).contiguous(memory_format=layout)
    has, kept = [0, 1, 3, 4], [0, 3, 4]
    student = torch.randn_like(teacher).index_select(dim, torch.tensor(has)).contiguous(memory_format=layout)
    loss = FeatureLoss([(dim, np.arange(6))], 6)
    loss.reduce_to(torch.tensor([group in has for group in range(6)]))
    loss.keep(torch.tensor([group in kept for group in range(6)]))

    def formula(student):
        t, s = (
            x.index_select(dim, torch.tensor(at)).flatten(1)
            for x, at in ((teacher, kept), (student, [has.index(group) for group in kept]))
        )
        return (2 - 2 * torch.cosine_similarity(t, s)).mean()

    values, gradients = [], []
    for function in (formula, lambda student: loss([teacher], [student])):
        leaf = student.clone().requires_grad_()
        values.append(function(leaf))
        torch.autograd.backward(3 * values[-1])
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_features_in_bfloat16_are_multiplied_in_float32():
    torch.manual_seed(0)
    teacher = torch.randn(16, 8, 4, 4).relu()
    student = (teacher + 0.03 * torch.randn_like(teacher)).bfloat16()
    loss, teacher = FeatureLoss([(1, np.arange(8))], 8), teacher.bfloat16()
    assert torch.equal(loss([teacher], [student]), loss([teacher.float()], [student.float()]))


def test_a_sample_without_activation_has_nothing_to_learn():
    teacher = torch.zeros(2, 3, 4, 4)
    student = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = FeatureLoss([(1, np.arange(3))], 3)([teacher], [student])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(student.grad).all()


def test_no_taps_no_loss():
    assert float(FeatureLoss([], 4)([], [])) == 0.0


def test_students_teach_each_other_but_only_learn_from_their_own_loss():
    torch.manual_seed(0)
    outputs = [[torch.randn(4, 5, requires_grad=True)] for _ in range(3)]
    loss = OutputLoss([Form("logits")], 2.0)
    value = mutual_loss(loss, [outputs[0], outputs[2]], outputs[1])
    expected = (loss(outputs[0], outputs[1]) + loss(outputs[2], outputs[1])) / 2
    torch.testing.assert_close(value, expected)
    value.backward()
    assert outputs[1][0].grad is not None
    assert outputs[0][0].grad is None
    assert outputs[2][0].grad is None


def test_a_batch_without_rare_answers_is_compared_by_the_spread_of_all():
    answers = torch.zeros(20, 16, 1)
    answers[3, 5] = answers[11, 2] = 1.0  # of 320, two
    loss = OutputLoss([Form("values")], 1.0, spreads_of([[batch] for batch in answers]))
    wrong = torch.zeros(16, 1)
    wrong[0] = 1.0
    assert float(loss([answers[0]], [wrong])) == pytest.approx(1 / 16 / answers.var(correction=0).item(), rel=1e-5)
    still = torch.ones(4, 1)
    assert float(OutputLoss([Form("values")], 1.0, spreads_of([[still]]))([still], [still])) == 0


def test_classes_are_learned_along_the_dimension_that_they_lie_in():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    steps, rows = OutputLoss([Form("logits", 2)], 2.0), OutputLoss([Form("logits")], 2.0)
    expected = rows([teacher.flatten(0, 1)], [student.flatten(0, 1)])
    assert float(steps([teacher], [student])) == pytest.approx(float(expected), rel=1e-5)
    assert steps.of_ignorance([teacher]) == pytest.approx(4 * np.log(5))
    assert steps.agreement(steps.answer([teacher]), [teacher]) == 1.0


def test_scores_are_learned_by_their_own_divergence_in_the_scale_of_the_mean_answer():
    torch.manual_seed(0)
    teacher, form = torch.randn(400, 3) * 3 - 4, [Form("scores")]
    loss = OutputLoss(form, 4.0, spreads_of([[teacher[:150]], [teacher[150:]]], form))
    ignorant = torch.full_like(teacher, float(torch.logit(teacher.sigmoid().mean())))
    assert float(loss([teacher], [teacher])) == pytest.approx(0.0, abs=1e-6)
    assert float(loss([teacher], [ignorant])) == pytest.approx(1.0, rel=1e-4)
    assert loss.of_ignorance([teacher]) == 1.0
    student = torch.zeros_like(teacher, requires_grad=True)
    loss([teacher], [student]).backward()
    assert bool(((student.grad > 0) == (teacher < 0)).all())


def test_of_several_tensors_each_is_learned_in_its_own_form():
    torch.manual_seed(0)
    classes, boxes = torch.randn(6, 4), 300 * torch.randn(6, 2)
    forms = [Form("logits"), Form("values")]
    loss = OutputLoss(forms, 1.0, spreads_of([[classes, boxes]], forms))
    expected = 0.5 * 900 / float(boxes.var(correction=0))
    assert float(loss([classes, boxes], [classes, boxes + 30])) == pytest.approx(expected, rel=1e-3)
    answer = loss.answer([classes, boxes])
    assert loss.agreement(answer, [classes, boxes]) == 1.0
    assert loss.agreement(answer, [classes.roll(1, 1), boxes]) < 1.0
