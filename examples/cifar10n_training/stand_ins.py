"""STAND-INS in plain PyTorch for operators that robustcore.losses does not have yet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symmetric_cross_entropy(logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    p = logits.softmax(-1).gather(-1, target[:, None])[:, 0]
    return alpha * F.cross_entropy(logits, target) + beta * 9.210340371976182 * (1 - p).mean()


class EarlyLearningLoss(nn.Module):
    def __init__(self, num_examples, num_classes, beta=0.7, lambda_=3.0):
        super().__init__()
        self.register_buffer("state", torch.zeros(num_examples, num_classes))
        self.beta, self.lambda_ = beta, lambda_

    def forward(self, logits, target, index):
        p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            t = self.beta * self.state[index] + (1 - self.beta) * p / p.sum(-1, keepdim=True)
            self.state[index] = t
        return F.cross_entropy(logits, target) + self.lambda_ * torch.log1p(-(t * p).sum(-1)).mean()


class OverParameterizedLoss(nn.Module):
    def __init__(self, num_examples, num_classes):
        super().__init__()
        self.u = nn.Parameter(torch.randn(num_examples, 1) * 1e-8)
        self.v = nn.Parameter(torch.randn(num_examples, num_classes) * 1e-8)

    def forward(self, logits, target, index):
        e = F.one_hot(target, logits.shape[-1]).to(logits.dtype)
        U = (self.u[index] ** 2 * e).clamp(0, 1)
        V = (self.v[index] ** 2 * (1 - e)).clamp(0, 1)
        q = (logits.softmax(-1) + U - V.detach()).clamp_min(1e-4)
        q = (q / q.sum(-1, keepdim=True).clamp_min(1e-4)).clamp(1e-4, 1)
        o = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        return -(e * q.log()).sum(-1).mean() + (o + U - V - e).square().sum(-1).mean()


def _contrast(logits, target, c):
    s = F.softplus(logits)
    z = logits.shape[-1] * s / s.sum(-1, keepdim=True)
    m = c * (1 - F.one_hot(target, logits.shape[-1]).to(z.dtype))
    return z, m + z - z.gather(-1, target[:, None])


def ldr_kl(logits, target, lambda_=1.0, margin=0.1):
    _, d = _contrast(logits, target, margin)
    C = torch.tensor(float(logits.shape[-1]))
    return (lambda_ * (torch.logsumexp(d / lambda_, -1) - C.log())).mean()


class AdaptiveLDRKL(nn.Module):
    def __init__(self, num_examples, alpha=2.0, lambda0=10.0, margin=0.1):
        super().__init__()
        self.register_buffer("state", torch.full((num_examples,), float(lambda0)))
        self.alpha, self.lambda0, self.margin = alpha, lambda0, margin

    def forward(self, logits, target, index):
        C = logits.shape[-1]
        z = C * logits / logits.abs().sum(-1, keepdim=True)
        lam = self.state[index]
        logC = torch.tensor(float(C)).log()
        with torch.no_grad():
            p = F.normalize((z / lam[:, None]).softmax(-1) + 1e-5, p=1, dim=-1)
            kl = (p * p.log()).sum(-1) + logC
            lam = self.lambda0 * (1 - kl / (self.alpha * logC))
            self.state[index] = lam
        m = self.margin * (1 - F.one_hot(target, C).to(z.dtype))
        d = m + z - z.gather(-1, target[:, None])
        loss = lam * (torch.logsumexp(d / lam[:, None], -1) - logC)
        return (loss - self.alpha * logC / (2 * self.lambda0) * (lam - self.lambda0) ** 2).mean()
