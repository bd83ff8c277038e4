"""Streaming DiLoCo: fragments synchronised in turn, each sent while the next tau inner steps are computed.

Fragment p of P, its schedule offset t_p = p H / P, at inner step t:

    (t - t_p) mod H = 0:         send Delta_m,p = theta_p - theta_m,p
    (t - t_p - tau) mod H = 0:   theta_p = OuterOpt(theta_p, mean Delta_p)
                                 theta_m,p = alpha theta_m,p + (1 - alpha) theta_p

alpha = 0 drops what the replica learnt in the tau steps; alpha = 1 never updates the replicas. tau = 0 is unoverlapped;
tau = 0, alpha = 0 with one fragment is DiLoCo.
Source: Douillard et al., arXiv 2501.18512, algorithm 2 and equation 3.
"""

from __future__ import annotations

import torch

from .algorithm import Algorithm, Exchange
from .plan import send_offset


class Streaming(Algorithm):
    def _sends(self, p: int, step: int) -> bool:
        """Whether fragment p is sent after inner step `step`; nothing is before the first."""
        return step > 0 and (step - send_offset(self.outer, p, len(self.fragments))) % self.outer.interval == 0

    def due(self, step: int) -> bool:
        tau = self.outer.overlap_steps or 0
        return any(self._sends(p, step) or self._sends(p, step - tau) for p in range(len(self.fragments)))

    @torch.no_grad()
    def exchange(self, step: int) -> Exchange:
        exchange, tau = Exchange(), self.outer.overlap_steps or 0
        for p, fragment in enumerate(self.fragments):
            if self._sends(p, step):
                exchange.sent_bytes += sum(bucket.send() for bucket in fragment)
            if self._sends(p, step - tau):
                exchange.received_any = True
                for bucket in fragment:
                    bucket.channel.advance()
                for bucket in fragment:
                    received, hidden_s = bucket.receive()
                    exchange.note(received, hidden_s)
                    bucket.copies[0].descend(received.total)
                    bucket.give_to_replicas(keep=self.outer.mixing_alpha or 0.0)
        return exchange
