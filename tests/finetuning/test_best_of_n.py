"""Best-of-n self-distillation: which samples are kept, and the denoising loss on them."""

import pytest
import torch
from torch import Tensor

from t2ifb.finetuning.best_of_n import BestOfN
from t2ifb.finetuning.groups import draw_groups
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module


def test_the_best_samples_of_each_prompt_are_kept() -> None:
    module = make_module(BestOfN(group_size=4, best=2))
    groups = draw_groups(module.policy, BATCH, 4)
    kept = module.algorithm.collect(module.policy, BATCH)
    best = groups.rewards.unflatten(0, (2, 4)).topk(2, 1).values
    assert torch.equal(kept["reward"].unflatten(0, (2, 2)).sort(1).values, best.sort(1).values)
    assert kept.prompts == [BATCH.prompts[0]] * 2 + [BATCH.prompts[1]] * 2


def test_random_picks_ignore_the_reward() -> None:
    module = make_module(BestOfN(group_size=4, best=2, pick="random"))
    groups = draw_groups(module.policy, BATCH, 4)
    kept = module.algorithm.collect(module.policy, BATCH)
    assert torch.equal(kept["latents"], groups.latents.unflatten(0, (2, 4))[:, :2].flatten(0, 1))


def test_an_update_is_the_denoising_loss() -> None:
    module = make_module(BestOfN(group_size=2, samples_per_update=3, empty_prompts=0.5), beta=0.0)
    policy = module.policy
    experience = module.algorithm.collect(policy, BATCH)
    part = next(iter(module.algorithm.minibatches(experience, seed=2)))
    loss = torch.zeros(())
    for row, prompt in enumerate(part.prompts):
        step, noise = int(part["step"][row]), part["noise"][row : row + 1]
        noisy = policy.schedule.a[step].float() * part["latents"][row] + policy.schedule.s[step].float() * noise
        output = policy.model.predict(noisy, policy.schedule.timesteps[step : step + 1], policy.model.encode([prompt]))
        loss = loss + module.algorithm.alpha * (output - noise).pow(2).mean() / len(part)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])
    from dataclasses import replace

    module.algorithm.loss(policy, replace(part, total=len(part))).total.backward()
    assert_alike(gradient(module), expected)


@pytest.mark.parametrize("wrong", [{"best": 9}, {"pick": "worst"}, {"updates": 0}, {"empty_prompts": 1.0}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BestOfN(**wrong)  # type: ignore[arg-type]


def test_a_term_of_the_kl_is_added_where_beta_is_set() -> None:
    noted: list[dict[str, Tensor]] = []
    for beta in (0.0, 0.1):
        module = make_module(BestOfN(group_size=2, samples_per_update=2), beta=beta)
        module.note = lambda **figures: noted.append(figures)  # type: ignore[method-assign]
        module.training_step(BATCH, 0)
    assert "kl" not in noted[0] and float(noted[-1]["kl"].mean()) > 0
