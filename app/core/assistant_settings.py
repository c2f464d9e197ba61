"""The settings of the assistant that replies in conversations."""

from pydantic import BaseModel, Field, SecretStr

from app.core.setting_types import BaseUrl


class AssistantSettings(BaseModel):
    assistant_base_url: BaseUrl | None = Field(
        None, description="Whatever speaks the chat-completions protocol, such as http://localhost:11434/v1"
    )
    assistant_api_key: SecretStr | None = Field(
        None, description="Sent there as a bearer token; production: by TLS only"
    )
    assistant_model: str | None = Field(None, max_length=200, description="The model that is asked for")
    assistant_system_prompt: str | None = Field(
        None, max_length=32_000, description="Instructions before every history"
    )
    assistant_history: int = Field(50, ge=1, le=500, description="How many of the latest messages it reads")
    assistant_max_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a reply")
    assistant_max_tokens_field: str = Field(
        "max_tokens", pattern="^max(_completion)?_tokens$", description="max_tokens or max_completion_tokens"
    )
    assistant_idle_seconds: float = Field(60, gt=0, le=600, description="Longest silence of it")
    assistant_timeout_seconds: float = Field(300, gt=0, le=3600, description="Longest a reply may take")
    assistant_redirects: int = Field(0, ge=0, le=5, description="How many redirects (307, 308) of it are followed")
    assistant_private_redirects: bool = Field(
        default=False, description="Redirects may lead to private addresses elsewhere"
    )
