"""Every route of the service, in one flat list: a router inside a router costs each request what a look-up costs.

The busiest come first, since routes are tried in order.
"""

from fastapi.routing import APIRoute

from app.api.v1.endpoints import (
    api_keys,
    auth,
    bootstrap,
    conversations,
    deleted_users,
    documentation,
    export,
    health,
    messages,
    users,
)

ROUTERS = (
    messages,
    conversations,
    users,
    auth,
    api_keys,
    health,
    bootstrap,
    documentation,
    deleted_users,
    export,
)


def all_routes() -> list[APIRoute]:
    return [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]
