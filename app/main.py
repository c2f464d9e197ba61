"""The application: its factory, and what it opens and closes."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.api.errors import register_error_handlers
from app.api.https import HttpsMiddleware
from app.api.idempotency import IdempotencyMiddleware, register_replays
from app.api.middleware import (
    BodyLimitMiddleware,
    CorsMiddleware,
    RequestContextMiddleware,
    SecurityHeadersMiddleware,
    TrailingSlashMiddleware,
    TrustedHostMiddleware,
    UnexpectedErrorMiddleware,
)
from app.api.openapi import describe
from app.api.streamed import MAX_FORM_BYTES
from app.api.tracing import TracingMiddleware
from app.api.v1.router import all_routes
from app.core import background, stopping
from app.core.config import Environment, Settings, use_settings
from app.core.logging_config import configure_logging, get_logger
from app.core.production import roles_without_second_factor
from app.core.rate_limit import MemoryRateLimiter, RateLimiter
from app.core.shared_rate_limit import SharedRateLimiter
from app.core.tracing import tracing
from app.core.version import VERSION
from app.db.change_feed import follow_changes
from app.db.migrator import SchemaError
from app.db.restore_state import RestoreUnfinishedError
from app.db.startup import open_database
from app.services import event_hub, external_api, health_service, key_usage_service, refusal_service
from app.services.conversation_service import finish_deletions
from app.services.file_worker import open_file_workers
from app.services.job_service import run_jobs
from app.services.jobs import JOBS
from app.services.mail_service import send_forever
from app.services.metrics_service import Scraper
from app.services.storage import open_storage

_EXPOSED_HEADERS = [
    *("Link", "ETag", "X-Request-ID", "Retry-After", "Idempotent-Replayed"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
]
_DRAIN_SECONDS = 5.0

_log = get_logger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build an application. Nothing is opened until its lifespan starts."""
    settings = settings or Settings()
    use_settings(settings)
    configure_logging("DEBUG" if settings.debug else settings.log_level)
    app = FastAPI(
        title="Octopus",
        version=VERSION,
        lifespan=_lifespan,
        middleware=_tracing(settings) + _middleware(settings),
        redirect_slashes=False,
        openapi_url=None,  # served by our own routes, which have a rate limit
    )
    app.state.settings = settings
    app.state.rate_limiter = _rate_limiter(settings)
    app.state.health = health_service.new_check()
    app.state.scraper = Scraper(settings.metrics_dir, app.state.health)
    register_error_handlers(app)
    register_replays(app)
    routes = all_routes()
    app.router.routes.extend(routes)
    documented = [route for route in routes if route.include_in_schema]
    app.openapi = lambda: app.openapi_schema or describe(app, documented)  # type: ignore[method-assign]
    return app


def _rate_limiter(settings: Settings) -> RateLimiter:
    if not settings.has_shared_rate_limits:
        return MemoryRateLimiter()
    return SharedRateLimiter(
        settings.rate_limit_storage_url.get_secret_value(), lambda key: settings.keyring.mac("rate limits", key)
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """From the outside in. What is not configured is not there and costs nothing."""
    is_https, proxies = settings.environment is Environment.PRODUCTION, settings.trusted_proxies
    stack = [
        Middleware(RequestContextMiddleware, trusted_proxies=proxies),
        Middleware(SecurityHeadersMiddleware, is_https=is_https, trusted_proxies=proxies),
    ]
    if "*" not in settings.trusted_hosts:
        stack.append(Middleware(TrustedHostMiddleware, trusted_hosts=settings.trusted_hosts))
    if proxies and urlsplit(settings.public_url).scheme == "https":
        keeps, url = "*" not in settings.trusted_hosts, settings.public_url
        stack.append(Middleware(HttpsMiddleware, trusted_proxies=proxies, public_url=url, keeps_host=keeps))
    if settings.cors_origins:
        stack.append(_cors(settings))
    return [
        *stack,
        Middleware(
            BodyLimitMiddleware,
            max_bytes=settings.max_body_bytes,
            max_streamed_bytes=settings.max_upload_bytes + MAX_FORM_BYTES,
        ),
        Middleware(TrailingSlashMiddleware),
        Middleware(IdempotencyMiddleware),
        Middleware(UnexpectedErrorMiddleware),
    ]


def _tracing(settings: Settings) -> list[Middleware]:
    if settings.otel_exporter_otlp_endpoint is None:
        return []
    return [Middleware(TracingMiddleware, trusted_proxies=settings.trusted_proxies)]


def _cors(settings: Settings) -> Middleware:
    return Middleware(
        CorsMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_credentials="*" not in settings.cors_origins,  # for the refresh cookie
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED_HEADERS,
        max_age=600,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    use_settings(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(stopping.heeded(settings.shutdown_delay_seconds))
        await stack.enter_async_context(tracing(settings))
        await _open_database(settings, stack)
        await stack.enter_async_context(external_api.opened())
        await stack.enter_async_context(app.state.scraper.running())
        await stack.enter_async_context(open_storage(settings))
        await _connect_rate_limiter(app.state.rate_limiter, stack)
        await stack.enter_async_context(open_file_workers(settings))
        stack.push_async_callback(background.drain, _DRAIN_SECONDS)
        background.start(finish_deletions(), name="finish_deletions")
        stack.push_async_callback(_cancel, asyncio.create_task(send_forever(), name="outbox"))
        stack.push_async_callback(_flush_last)
        stack.push_async_callback(_cancel, asyncio.create_task(key_usage_service.flush_forever(), name="key_usage"))
        stack.push_async_callback(_cancel, asyncio.create_task(refusal_service.keep_flushing(), name="refusals"))
        stack.push_async_callback(_cancel, asyncio.create_task(run_jobs(JOBS), name="jobs"))
        if settings.auth_cache_seconds > 0:
            tried = asyncio.Event()
            feed = asyncio.create_task(follow_changes(tried), name="change_feed")
            stack.push_async_callback(_cancel, feed)
            await tried.wait()
        await stack.enter_async_context(event_hub.running())
        _freeze_memory()
        if settings.environment is Environment.PRODUCTION:
            _warn(settings)
        _log.info("started", version=VERSION, environment=settings.environment)
        yield
    _log.info("stopped")


async def _open_database(settings: Settings, stack: AsyncExitStack) -> None:
    try:
        await stack.enter_async_context(open_database(settings))
    except (RestoreUnfinishedError, SchemaError) as error:
        _log.critical("start_refused", reason=str(error))
        raise


async def _connect_rate_limiter(limiter: RateLimiter, stack: AsyncExitStack) -> None:
    if isinstance(limiter, SharedRateLimiter):
        stack.push_async_callback(limiter.close)
        await limiter.open()


def _warn(settings: Settings) -> None:
    """Of what production starts with, although it should not be."""
    if roles := roles_without_second_factor(settings):
        _log.warning("second_factor_not_required", roles=roles, hint="set REQUIRE_MFA_FOR")
    if "*" in settings.trusted_hosts:
        _log.warning("any_host_answered", hint=f'set TRUSTED_HOSTS=["{urlsplit(settings.public_url).hostname}"]')
    if not settings.trusted_proxies:
        _log.warning("no_proxy_trusted", hint="set TRUSTED_PROXIES to what ends TLS, or nobody is sent to https")
    if settings.workers > 1 and not settings.has_shared_rate_limits:
        _log.warning("rate_limits_multiplied", workers=settings.workers, hint="set RATE_LIMIT_STORAGE_URL=redis://...")


async def _flush_last() -> None:
    """At the same time, so that they have all the time there is."""
    await asyncio.gather(key_usage_service.flush_last(), refusal_service.flush_last())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@cache
def _freeze_memory() -> None:
    """Take what was loaded at the start out of the garbage collector's rounds: they are shorter then."""
    gc.collect()
    gc.freeze()
