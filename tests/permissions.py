"""Who may do what, as one table: every endpoint, every kind of caller, on what is its own and on what is another's."""

import json
from typing import Any, Final, NamedTuple

# The columns, in groups as in the table: nobody; a guest, a user, support staff of level 1, 2 and 3, an administrator,
# a superuser; a user's own key with `read` and `write`; keys of services with `read`, with `write`, with `admin`.
CALLERS: Final = (
    *("nobody",),
    *("guest", "user", "support 1", "support 2", "support 3", "admin", "superuser"),
    *("personal key", "read key", "write key", "admin key"),
)
# Done; who are you? (401); not you (403); there is no such thing for you (404); does not apply.
MEANING: Final = {"+": (200, 201, 202, 204), "?": (401,), "x": (403,), "0": (404,), ".": ()}

# Whose it is that the path names: one's `own`, that of another `user`, of an `admin`, of a `superuser`; `-` nobody's.
# A path without a slash in front is below /api/v1/. A field that matters for the answer stands at the end; the other
# bodies are in tests/api/test_permissions.py.
_TABLE: Final = """
# Open to everybody
GET    /                                                      -         + +++++++ ++++
GET    /.well-known/jwks.json                                 -         + +++++++ ++++
GET    auth/email/verify                                      -         + +++++++ ++++
POST   auth/email/verify                                      -         + +++++++ ++++
POST   auth/email/verify/form                                 -         + +++++++ ++++
POST   auth/email/verify/request                              -         + +++++++ ++++
POST   auth/login                                             -         + +++++++ ++++
POST   auth/password/forgot                                   -         + +++++++ ++++
GET    auth/password/reset                                    -         + +++++++ ++++
POST   auth/password/reset                                    -         + +++++++ ++++
POST   auth/password/reset/form                               -         + +++++++ ++++
POST   auth/refresh                                           -         + +++++++ ++++
POST   auth/register                                          -         + +++++++ ++++
POST   auth/token                                             -         + +++++++ ++++
POST   users                                                  -         + +++++++ ++++
GET    users/username/{username}                              -         + +++++++ ++++
POST   /bootstrap                                             -         + +++++++ ++++
GET    /docs                                                  -         + +++++++ ++++
GET    /health                                                -         + +++++++ ++++
GET    /health/live                                           -         + +++++++ ++++
GET    /health/ready                                          -         + +++++++ ++++
GET    /metrics                                               -         + +++++++ ++++
GET    /openapi.json                                          -         + +++++++ ++++
GET    /redoc                                                 -         + +++++++ ++++
# One's own sessions, password and second factor
POST   auth/introspect                                        own       ? xxxxx++ xxx+
POST   auth/logout                                            own       ? +++++++ xxxx
POST   auth/logout-all                                        own       ? +++++++ xxxx
GET    auth/me                                                own       ? +++++++ ++++
POST   auth/mfa/recovery-codes                                own       ? +++++++ xxxx
POST   auth/mfa/totp                                          own       ? +++++++ xxxx
DELETE auth/mfa/totp                                          own       ? +++++++ xxxx
POST   auth/mfa/totp/confirm                                  own       ? +++++++ xxxx
POST   auth/password/change                                   own       ? +++++++ xxxx
GET    auth/sessions                                          own       ? +++++++ xxxx
DELETE auth/sessions/{session_id}                             own       ? +++++++ x...
DELETE auth/sessions/{session_id}                             user      ? 0000000 xxxx
# Accounts
GET    usage/me                                               own       ? +++++++ +xxx
GET    users                                                  -         ? xx+++++ x+x+
GET    users/me                                               own       ? +++++++ +xxx
PUT    users/me                                               own       ? x++++++ +xxx
PATCH  users/me                                               own       ? x++++++ +xxx
DELETE users/me                                               own       ? x++++++ +xxx
GET    users/me/export                                        own       ? +++++++ +xxx
GET    users/{user_id}                                        own       ? +++++++ +...
GET    users/{user_id}                                        user      ? xx+++++ x+x+
GET    users/{user_id}                                        admin     ? xx+++++ x+x+
PUT    users/{user_id}                                        own       ? x++++++ +...
PUT    users/{user_id}                                        user      ? xxxxx++ xx++
PUT    users/{user_id}                                        admin     ? xxxxxx+ xxxx
PUT    users/{user_id}                                        superuser ? xxxxxx+ xxxx
PATCH  users/{user_id}                                        own       ? x++++++ +...
PATCH  users/{user_id}                                        own       ? xxxxxx+ x... role="superuser"
PATCH  users/{user_id}                                        user      ? xxxxx++ xx++
PATCH  users/{user_id}                                        user      ? xxxxx++ xxx+ role="guest"
PATCH  users/{user_id}                                        user      ? xxxxx++ xxx+ is_active=false
PATCH  users/{user_id}                                        user      ? xxxxx++ xx++ password="walrus-Compass-77"
PATCH  users/{user_id}                                        admin     ? xxxxxx+ xxxx
PATCH  users/{user_id}                                        admin     ? xxxxxx+ xxxx password="walrus-Compass-77"
PATCH  users/{user_id}                                        superuser ? xxxxxx+ xxxx
DELETE users/{user_id}                                        own       ? x++++++ +...
DELETE users/{user_id}                                        user      ? xxxxx++ xx++
DELETE users/{user_id}                                        admin     ? xxxxxx+ xxxx
DELETE users/{user_id}                                        superuser ? xxxxxx+ xxxx
GET    users/{user_id}/usage                                  own       ? +++++++ +...
GET    users/{user_id}/usage                                  user      ? xx+++++ x+x+
GET    message-logs                                           -         ? xxxxx++ xxx+
POST   message-logs                                           -         ? xxxxx++ xxx+
# Staff
GET    staff/users                                            -         ? xx+++++ xxx+
GET    staff/users/{user_id}                                  own       ? xx+++++ x...
GET    staff/users/{user_id}                                  user      ? xx+++++ xxx+
POST   staff/users/{user_id}/activate                         own       ? xxxxxx+ x...
POST   staff/users/{user_id}/activate                         user      ? xxx++++ xxx+
POST   staff/users/{user_id}/activate                         admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/activate                         superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/credits                          own       ? xxxxxx+ x...
POST   staff/users/{user_id}/credits                          user      ? xxxx+++ xxx+
POST   staff/users/{user_id}/credits                          admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/credits                          superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/deactivate                       own       ? xxxxxx+ x...
POST   staff/users/{user_id}/deactivate                       user      ? xxx++++ xxx+
POST   staff/users/{user_id}/deactivate                       admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/deactivate                       superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/plan                             own       ? xxxxxx+ x...
POST   staff/users/{user_id}/plan                             user      ? xxxx+++ xxx+
POST   staff/users/{user_id}/plan                             admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/plan                             superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/reset-limits                     own       ? xxxxxx+ x...
POST   staff/users/{user_id}/reset-limits                     user      ? xxx++++ xxx+
POST   staff/users/{user_id}/reset-limits                     admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/reset-limits                     superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/restore                          user      ? xxxx+++ xxx+
POST   staff/users/{user_id}/restore                          admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/restore                          superuser ? xxxxxx+ xxxx
POST   staff/users/{user_id}/revoke-sessions                  own       ? xxxxxx+ x...
POST   staff/users/{user_id}/revoke-sessions                  user      ? xxx++++ xxx+
POST   staff/users/{user_id}/revoke-sessions                  admin     ? xxxxxx+ xxxx
POST   staff/users/{user_id}/revoke-sessions                  superuser ? xxxxxx+ xxxx
GET    staff/users/{user_id}/usage                            own       ? xx+++++ x...
GET    staff/users/{user_id}/usage                            user      ? xx+++++ xxx+
# Administration
GET    admin/deleted-users                                    -         ? xxxxx++ xxx+
DELETE admin/deleted-users/{user_id}                          user      ? xxxxx++ xxx+
DELETE admin/deleted-users/{user_id}                          admin     ? xxxxxx+ xxxx
DELETE admin/deleted-users/{user_id}                          superuser ? xxxxxx+ xxxx
POST   admin/deleted-users/{user_id}/restore                  user      ? xxxxx++ xxx+
POST   admin/deleted-users/{user_id}/restore                  admin     ? xxxxxx+ xxxx
POST   admin/deleted-users/{user_id}/restore                  superuser ? xxxxxx+ xxxx
POST   admin/users                                            -         ? xxxxx++ xxx+
POST   admin/users                                            -         ? xxxxx++ xxx+ role="support"
POST   admin/users                                            -         ? xxxxxx+ xxxx role="admin"
POST   admin/users                                            -         ? xxxxxx+ xxxx role="superuser"
PATCH  admin/users/{user_id}                                  own       ? xxxxxx+ x...
PATCH  admin/users/{user_id}                                  user      ? xxxxx++ xxx+
PATCH  admin/users/{user_id}                                  user      ? xxxxx++ xxx+ role="support"
PATCH  admin/users/{user_id}                                  user      ? xxxxxx+ xxxx role="admin"
PATCH  admin/users/{user_id}                                  admin     ? xxxxxx+ xxxx
PATCH  admin/users/{user_id}                                  admin     ? xxxxxx+ xxxx role="user"
PATCH  admin/users/{user_id}                                  superuser ? xxxxxx+ xxxx
GET    admin/jobs                                             -         ? xxxxx++ xxx+
POST   admin/jobs/{name}/run                                  -         ? xxxxx++ xxx+
GET    admin/stats                                            -         ? xxxxx++ xxx+
GET    admin/system                                           -         ? xxxxx++ xxx+
GET    admin/audit-events                                     -         ? xxxxx++ xxx+
GET    admin/audit-events/export                              -         ? xxxxx++ xxx+
GET    admin/audit-events/verify                              -         ? xxxxx++ xxx+
# API keys
GET    api-keys                                               -         ? x++++++ xxx+
POST   api-keys                                               -         ? x++++++ xxx+
POST   api-keys                                               -         ? x++++++ xxx+ scopes=["read"]
POST   api-keys                                               -         ? x++++++ xxx+ scopes=["write"]
POST   api-keys                                               -         ? xxxxx++ xxx+ scopes=["admin"]
GET    api-keys/expiring                                      -         ? xxxxx++ xxx+
POST   api-keys/cleanup-expired                               -         ? xxxxx++ xxx+
POST   api-keys/verify                                        own       ? xxxxx++ xxx+
GET    api-keys/{api_key_id}                                  own       ? x++++++ x...
GET    api-keys/{api_key_id}                                  user      ? x0000++ xxx+
GET    api-keys/{api_key_id}                                  superuser ? x0000++ xxx+
PATCH  api-keys/{api_key_id}                                  own       ? x++++++ x...
PATCH  api-keys/{api_key_id}                                  user      ? x0000++ xxx+
PATCH  api-keys/{api_key_id}                                  superuser ? x0000x+ xxxx
DELETE api-keys/{api_key_id}                                  own       ? x++++++ x...
DELETE api-keys/{api_key_id}                                  user      ? x0000++ xxx+
DELETE api-keys/{api_key_id}                                  superuser ? x0000x+ xxxx
POST   api-keys/{api_key_id}/activate                         own       ? x++++++ x...
POST   api-keys/{api_key_id}/activate                         user      ? x0000++ xxx+
POST   api-keys/{api_key_id}/activate                         superuser ? x0000x+ xxxx
POST   api-keys/{api_key_id}/deactivate                       own       ? x++++++ x...
POST   api-keys/{api_key_id}/deactivate                       user      ? x0000++ xxx+
POST   api-keys/{api_key_id}/deactivate                       superuser ? x0000x+ xxxx
GET    api-keys/{api_key_id}/usage                            own       ? x++++++ x...
GET    api-keys/{api_key_id}/usage                            user      ? x0000++ xxx+
GET    api-keys/{api_key_id}/usage                            superuser ? x0000++ xxx+
POST   api-keys/{api_key_id}/rotate                           own       ? x++++++ x...
POST   api-keys/{api_key_id}/rotate                           user      ? x0000++ xxx+
POST   api-keys/{api_key_id}/rotate                           admin     ? x0000x+ xxxx
POST   api-keys/{api_key_id}/rotate                           superuser ? x0000x+ xxxx
GET    api-keys/audit-logs                                    -         ? xxxxx++ xxx+
GET    api-keys/{api_key_id}/audit-logs                       own       ? xxxxx++ x...
GET    api-keys/{api_key_id}/audit-logs                       user      ? xxxxx++ xxx+
# Conversations
GET    conversations                                          -         ? +++++++ ++x+
POST   conversations                                          -         ? x++++++ +x++
GET    conversations/user/{user_id}                           own       ? +++++++ +...
GET    conversations/user/{user_id}                           user      ? xxxxx++ x+x+
GET    conversations/{conversation_id}                        own       ? +++++++ +...
GET    conversations/{conversation_id}                        user      ? 00000++ 0+x+
PUT    conversations/{conversation_id}                        own       ? x++++++ +...
PUT    conversations/{conversation_id}                        user      ? x0000++ 0x++
PATCH  conversations/{conversation_id}                        own       ? x++++++ +...
PATCH  conversations/{conversation_id}                        user      ? x0000++ 0x++
DELETE conversations/{conversation_id}                        own       ? x++++++ +...
DELETE conversations/{conversation_id}                        user      ? x0000++ 0x++
GET    conversations/{conversation_id}/events                 own       ? +++++++ +...
GET    conversations/{conversation_id}/events                 user      ? 00000++ 0+x+
POST   conversations/{conversation_id}/typing                 own       ? x++++++ +...
POST   conversations/{conversation_id}/typing                 user      ? x0000xx 0xxx
GET    conversations/{conversation_id}/messages               own       ? +++++++ +...
GET    conversations/{conversation_id}/messages               user      ? 00000++ 0+x+
POST   conversations/{conversation_id}/messages               own       ? x++++++ +...
POST   conversations/{conversation_id}/messages               own       ? xxxxxxx x... role="assistant"
POST   conversations/{conversation_id}/messages               user      ? x0000xx 0x++
POST   conversations/{conversation_id}/messages               user      ? xxxxxxx xx++ role="assistant"
GET    conversations/{conversation_id}/messages/{message_id}  own       ? +++++++ +...
GET    conversations/{conversation_id}/messages/{message_id}  user      ? 00000++ 0+x+
PATCH  conversations/{conversation_id}/messages/{message_id}  own       ? x++++++ +...
PATCH  conversations/{conversation_id}/messages/{message_id}  user      ? x0000++ 0x++
DELETE conversations/{conversation_id}/messages/{message_id}  own       ? x++++++ +...
DELETE conversations/{conversation_id}/messages/{message_id}  user      ? x0000++ 0x++
POST   conversations/{conversation_id}/messages/batch         own       ? x++++++ +...
POST   conversations/{conversation_id}/messages/batch         user      ? x0000xx 0x++
POST   conversations/{conversation_id}/reply                  own       ? x++++++ +...
POST   conversations/{conversation_id}/reply                  user      ? x0000xx 0xx+
POST   conversations/{conversation_id}/read                   own       ? x++++++ +...
POST   conversations/{conversation_id}/read                   user      ? x0000xx 0x++
POST   conversations/{conversation_id}/participants           own       ? x++++++ +...
POST   conversations/{conversation_id}/participants           user      ? x0000++ 0x++
DELETE conversations/{conversation_id}/participants/{user_id} own       ? x++++++ +...
DELETE conversations/{conversation_id}/participants/{user_id} user      ? x0000++ 0x++
# Items
GET    items                                                  -         ? +++++++ ++x+
POST   items                                                  -         ? x++++++ +xxx
GET    items/{item_id}                                        own       ? +++++++ +...
GET    items/{item_id}                                        user      ? 00000++ 0+x+
PUT    items/{item_id}                                        own       ? x++++++ +...
PUT    items/{item_id}                                        user      ? x0000++ 0x++
PATCH  items/{item_id}                                        own       ? x++++++ +...
PATCH  items/{item_id}                                        user      ? x0000++ 0x++
DELETE items/{item_id}                                        own       ? x++++++ +...
DELETE items/{item_id}                                        user      ? x0000++ 0x++
# Uploads
GET    uploads                                                -         ? +++++++ ++x+
POST   uploads                                                -         ? x++++++ +x++
GET    uploads/{upload_id}                                    own       0 +++++++ +...
GET    uploads/{upload_id}                                    user      0 00000++ 0+x+
DELETE uploads/{upload_id}                                    own       ? x++++++ +...
DELETE uploads/{upload_id}                                    user      ? x0000++ 0x++
# The bytes of them, and links to these
GET    uploads/{upload_id}/content                            own       0 +++++++ +...
GET    uploads/{upload_id}/content                            user      0 00000++ 0+x+
GET    uploads/{upload_id}/thumbnail                          own       0 +++++++ +...
GET    uploads/{upload_id}/thumbnail                          user      0 00000++ 0+x+
GET    uploads/{upload_id}/text                               own       0 +++++++ +...
GET    uploads/{upload_id}/text                               user      0 00000++ 0+x+
POST   uploads/{upload_id}/url                                own       ? +++++++ +...
POST   uploads/{upload_id}/url                                user      ? 00000++ 0+x+
POST   uploads/direct                                         -         ? x++++++ +x++
PUT    uploads/{upload_id}/bytes                              -         x xxxxxxx xxxx
POST   uploads/{upload_id}/complete                           own       ? x++++++ +...
POST   uploads/{upload_id}/complete                           user      ? x0000++ 0x++
"""


class Row(NamedTuple):
    """What each caller gets for one request, by the letters above."""

    method: str
    path: str
    whose: str
    letters: dict[str, str]
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return " ".join([self.method, self.path, self.whose, *self.fields])


def _row(line: str) -> Row:
    method, path, whose, nobody, roles, keys, *assigned = line.split()
    pairs = [field.split("=", 1) for field in assigned]
    return Row(
        method,
        path if path.startswith("/") else f"/api/v1/{path}",
        whose,
        dict(zip(CALLERS, nobody + roles + keys, strict=True)),
        {name: json.loads(value) for name, value in pairs},
    )


ROWS: Final = [_row(line) for line in _TABLE.strip().splitlines() if not line.startswith("#")]
