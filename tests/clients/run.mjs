// What the example of docs/tokens.md makes of each token: a line with its claims, or with why it is refused.
import { claimsOf } from "./verify.mjs";

for (const token of process.argv.slice(2)) {
  const answer = await claimsOf(token).catch((error) => ({ refused: error.code ?? String(error) }));
  console.log(JSON.stringify(answer));
}
