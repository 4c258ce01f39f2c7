"""Many subjects asked of endpoints at once: rate, retries, budget, and what becomes of failures."""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from .answer_cache import Answer, AnswerCache
from .interviews import Interview
from .miners.endpoint import Endpoint, EndpointSettings, EndpointStopped, SubjectRefused, TryLater


MAX_WAIT = 30.0  # seconds between attempts, unless the server asks for more

Result = TypeVar("Result")


class Budget:
    """Tokens and money: what is spent, and what requests on their way may still cost.

    Args:
        settings: The caps and prices.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._spent = [0, 0]
        self._reserved: list[tuple[int, int]] = []
        self._change = asyncio.Condition()

    def spend(self, tokens_in: int, tokens_out: int) -> None:
        self._spent = [self._spent[0] + tokens_in, self._spent[1] + tokens_out]

    async def reserve(self, most: tuple[int, int]) -> bool:
        """Sets aside what a request can cost. Waits while others hold too much; `False` if it cannot be afforded."""
        async with self._change:
            while not self._fits(most):
                if not self._reserved:
                    return False
                await self._change.wait()
            self._reserved.append(most)
            return True

    async def settle(self, most: tuple[int, int], spent: tuple[int, int]) -> None:
        """Gives back what was set aside, less what the request did cost."""
        async with self._change:
            self._reserved.remove(most)
            self.spend(*spent)
            self._change.notify_all()

    def _fits(self, most: tuple[int, int]) -> bool:
        tokens_in, tokens_out = (sum(column) for column in zip(self._spent, most, *self._reserved, strict=True))
        settings = self._settings
        if settings.max_tokens_total is not None and tokens_in + tokens_out > settings.max_tokens_total:
            return False
        return settings.max_cost is None or cost(settings, tokens_in, tokens_out) <= settings.max_cost


def cost(settings: EndpointSettings, tokens_in: int, tokens_out: int) -> float:
    """Money, by the prices of a million tokens; 0 without prices."""
    return (tokens_in * (settings.price_in or 0) + tokens_out * (settings.price_out or 0)) / 1e6


class Pace:
    """When the next request may start: by rate, and after failures.

    A failure holds every request of the miner back, since most failures are the server's and not the request's.

    Args:
        settings: Rate and waits.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.failures = 0  # in a row
        self.stopped = asyncio.Event()
        self._interval = 60 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._first_wait = settings.first_wait
        self._next = self._open = self._failed = 0.0

    async def turn(self) -> float:
        """Waits for it, unless the miner is stopped; returns when that was, in seconds."""
        while (wait := max(self._next, self._open) - time.monotonic()) > 0 and not self.stopped.is_set():
            try:
                await asyncio.wait_for(self.stopped.wait(), wait)
            except TimeoutError:
                continue
        now = time.monotonic()
        self._next = now + self._interval
        return now

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, started: float, wait: float | None) -> None:
        """Holds back what comes: exponentially longer, with jitter, or as long as the server asks.

        Requests that were on their way together fail together; that counts as one failure.
        """
        now = time.monotonic()
        if started >= self._failed:
            self.failures, self._failed = self.failures + 1, now
            back_off = min(self._first_wait * 2 ** (self.failures - 1), MAX_WAIT) * random.uniform(1, 1.25)
            self._open = max(self._open, now + back_off)
        self._open = max(self._open, now + (wait or 0.0))


class Asker:
    """Leads the interviews of one endpoint.

    Args:
        name: The miner's, for messages.
        endpoint: What answers.
        interviews: Those that the cache could not finish are asked, in their order.
        cache: Gets every answer at once.

    Attributes:
        stop: Why no more was asked, or `None`.
        requests: Answers that were had.
    """

    def __init__(self, name: str, endpoint: Endpoint, interviews: list[Interview], cache: AnswerCache) -> None:
        self.name = name
        self.stop: str | None = None
        self.requests = 0
        self._endpoint = endpoint
        self._settings = endpoint.settings
        self._interviews = interviews
        self._cache = cache
        self._refusals = 0  # in a row

    @property
    def schema_refused(self) -> bool:
        """Whether the server had to be asked without a schema."""
        return self._endpoint.schema_refused

    async def run(self, position: int = 0) -> None:
        """Asks until every interview is finished, has failed, or the miner is stopped.

        Args:
            position: Line of the progress bar.
        """
        self._budget, self._pace = Budget(self._settings), Pace(self._settings)
        for answer in (answer for interview in self._interviews for answer in interview.answers):
            self._budget.spend(answer.tokens_in, answer.tokens_out)
        waiting = [interview for interview in self._interviews if not interview.finished]
        done = len(self._interviews) - len(waiting)
        with tqdm(total=len(self._interviews), initial=done, desc=self.name, position=position) as bar:
            async with self._endpoint:
                queue = iter(waiting)
                workers = min(self._settings.concurrency, len(waiting))
                await asyncio.gather(*(self._work(queue, bar) for _ in range(workers)))

    async def _work(self, queue: Iterator[Interview], bar: tqdm) -> None:
        for interview in queue:
            await self._lead(interview)
            if self.stop is not None:
                return
            bar.update()

    async def _lead(self, interview: Interview) -> None:
        while not interview.finished:
            question = interview.question()
            answer = await self._answer(interview, question)
            if answer is None:
                return
            self._cache.keep(interview.manner.model, [(interview.key(question), interview.subject, answer)])
            self.requests += 1
            interview.hear(answer)

    async def _answer(self, interview: Interview, question: list[dict[str, Any]]) -> Answer | None:
        most = self._endpoint.most_tokens(question)
        reason = ""
        for _ in range(self._settings.attempts):
            if not await self._budget.reserve(most):
                self._halt(
                    f"the next request could exceed the budget ({self._caps()}); raise it to go on: what is answered "
                    "is kept."
                )
                return None
            spent = (0, 0)
            try:
                started = await self._pace.turn()
                if self.stop is not None:
                    return None
                answer = await self._endpoint.answer(question)
                spent = answer.tokens_in, answer.tokens_out
            except TryLater as error:
                spent = most if error.unsettled else spent
                reason = str(error)
                self._failed(started, error)
            except SubjectRefused as error:
                interview.give_up(str(error))
                self._refused(str(error))
                return None
            except EndpointStopped as error:
                self._halt(str(error))
                return None
            else:
                self._pace.succeeded()
                self._refusals = 0
                return answer
            finally:
                await self._budget.settle(most, spent)
        interview.give_up(f"{self._settings.attempts} attempts, the last: {reason}")
        return None

    def _failed(self, started: float, error: TryLater) -> None:
        self._pace.failed(started, error.wait)
        if self._pace.failures >= self._settings.stop_after:
            self._halt(
                f"{self._settings.base_url} failed {self._pace.failures} times in a row, the last: {error}; see that "
                "it runs, then run the same command again: what is answered is kept."
            )

    def _refused(self, reason: str) -> None:
        self._refusals += 1
        if self._refusals >= self._settings.stop_after:
            self._halt(f"{self._settings.base_url} refused {self._refusals} subjects in a row, the last: {reason}.")

    def _halt(self, reason: str) -> None:
        self.stop = self.stop or reason
        self._pace.stopped.set()

    def _caps(self) -> str:
        settings = self._settings
        caps = {"max_tokens_total": settings.max_tokens_total, "max_cost": settings.max_cost}
        return ", ".join(f"{name} {cap:g}" for name, cap in caps.items() if cap is not None)


def ask_all(askers: list[Asker]) -> None:
    """Runs them at the same time."""

    async def run() -> None:
        await asyncio.gather(*(asker.run(position) for position, asker in enumerate(askers)))

    if askers:
        _in_a_loop(run())


def _in_a_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Like `asyncio.run`, in a notebook as well, whose thread runs a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
