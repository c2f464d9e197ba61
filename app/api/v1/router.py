"""Every route of the service, in one flat list: a router inside a router costs each request what a look-up costs.

The busiest come first, since routes are tried in order.
"""

from fastapi.routing import APIRoute

from app.api.v1.endpoints import (
    admin_users,
    api_keys,
    audit_events,
    auth,
    bootstrap,
    conversations,
    credentials,
    deleted_users,
    documentation,
    events,
    export,
    health,
    introspection,
    items,
    jobs,
    jwks,
    key_expiry,
    key_usage,
    key_verification,
    message_logs,
    messages,
    metrics,
    pages,
    replies,
    single_messages,
    staff,
    system,
    upload_content,
    uploads,
    usage,
    users,
)

ROUTERS = (
    messages,
    conversations,
    single_messages,
    events,
    replies,
    export,
    users,
    auth,
    credentials,
    introspection,
    key_verification,
    key_expiry,
    audit_events,
    api_keys,
    key_usage,
    usage,
    message_logs,
    staff,
    admin_users,
    deleted_users,
    system,
    uploads,
    upload_content,
    jobs,
    items,
    health,
    jwks,
    metrics,
    bootstrap,
    pages,
    documentation,
)


def all_routes() -> list[APIRoute]:
    return [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]
