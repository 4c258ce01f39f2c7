"""What a rollout's log-probability is weighed with: estimators of the policy gradient of the expected reward.

With f the reward, p the policy and G rollouts a prompt, every advantage A below is scaled such that
mean_i A_i ∇log p(s_i) estimates ∇E[f]. TRL's own (`group`) is A_i = f_i − mean(f), optionally divided by the group's
standard deviation: (1 − 1/G) of the gradient without that division, and biased with it (see docs/grpo.md).
"""

import torch


def leave_one_out(group_advantages: torch.Tensor) -> torch.Tensor:
    """f_i less the mean of the others' rewards; unbiased for independent draws (RLOO) [known].

    Args:
        group_advantages: float [groups, G], f_i − mean(f). The others' mean makes it G / (G − 1) times as large.
    """
    size = group_advantages.shape[-1]
    return group_advantages * (size / (size - 1))


def without_replacement(rewards: torch.Tensor, log_probs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Importance-weighted advantages of distinct draws; unbiased (Kool et al., "Buy 4 REINFORCE samples, get a
    baseline for free!", 2019) [known].

    With κ the (G+1)-th largest Gumbel key, a rollout is among the G with probability q = 1 − exp(−exp(log p − κ)), and
    w = p / q. A_i = G w_i (f_i (1 + w_i − p_i) − Σ_j w_j f_j).

    Args:
        rewards: float [groups, G].
        log_probs: float [groups, G], of the rollouts under the policy that drew them; −inf where a group has fewer
            distinct answers than G.
        keys: float [groups], κ; −inf where there were no more answers: then every answer was drawn, and w = p.

    Returns:
        float [groups, G]; 0 where there is no answer.
    """
    probs = log_probs.exp()
    # p / (1 - exp(-x)), x = exp(log p - κ); where κ = -inf, x is inf and w = p
    included = -torch.expm1(-torch.exp(log_probs - keys[:, None]))
    weights = torch.where(log_probs.isneginf(), 0.0, probs / included)
    baseline = (weights * rewards).sum(1, keepdim=True)
    return rewards.shape[1] * weights * (rewards * (1 + weights - probs) - baseline)


def uniform_groups(rewards: torch.Tensor) -> torch.Tensor:
    """Groups whose rollouts all have one reward and so teach nothing, bool [groups]; rewards float [groups, G]."""
    return (rewards == rewards[:, :1]).all(1)
