"""What Redis runs: each script is one step over all scopes of a request, by the server's own clock.

A scope has its keys under `{relay}:<scope>`; the braces put all of them into one slot of a cluster, so that one script may touch several:

    :r  requests of the last minute, a sorted set of ids by the millisecond of their admission
    :t  entries of tokens likewise, and :a a hash of their amounts with their `sum`
    :l  requests in flight, a sorted set of ids by the millisecond at which their lease ends
    :h  what they reserved of the budget, a hash with its `sum`; :x what was taken for spent when a lease ended
    :b:<kind>:<period>  what was spent of a budget in one day or month of the calendar (UTC)

and for all, where there are several relays, `{relay}:recent`: scopes by the millisecond in which something was last counted in them.

Every change names the request's id and sets an absolute value, so sending one again changes nothing. All keys expire.
"""

from typing import Final

_COMMON: Final = """
local WINDOW = 60001
local MINUTE, HOUR, LONG = 61000, 3600000, 40 * 86400000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function words(text)
  local found = {}
  for each in string.gmatch(text, '%S+') do found[#found + 1] = tonumber(each) or each end
  return found
end

local function period(kind)
  local day = math.floor(time[1] / 86400)
  if kind <= 2 then return day end
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

local function spend(k, kind, amount)
  if kind == 0 or amount == 0 then return end
  local key = k .. ':b:' .. kind .. ':' .. period(kind)
  redis.call('INCRBY', key, string.format('%.0f', amount))
  redis.call('PEXPIRE', key, LONG)
end

local function put_tokens(k, id, amount, stamp)
  local old = redis.call('HGET', k .. ':a', id)
  if amount == 0 then
    redis.call('ZREM', k .. ':t', id)
    redis.call('HDEL', k .. ':a', id)
  else
    if not old then redis.call('ZADD', k .. ':t', stamp, id) end
    redis.call('HSET', k .. ':a', id, amount)
  end
  redis.call('HINCRBY', k .. ':a', 'sum', amount - (old or 0))
  redis.call('PEXPIRE', k .. ':t', MINUTE)
  redis.call('PEXPIRE', k .. ':a', MINUTE)
end

local function hold(k, id, amount)
  local old = redis.call('HGET', k .. ':h', id)
  if amount == (tonumber(old) or 0) then return end
  if amount == 0 then redis.call('HDEL', k .. ':h', id) else redis.call('HSET', k .. ':h', id, string.format('%.0f', amount)) end
  redis.call('HINCRBY', k .. ':h', 'sum', string.format('%.0f', amount - (old or 0)))
  redis.call('PEXPIRE', k .. ':h', LONG)
end

local function touch(k, kind)
  redis.call('ZADD', '{relay}:recent', now, string.format('%d %s', kind, k))
  redis.call('PEXPIRE', '{relay}:recent', LONG)
end

local function used_of(k, kind)
  local spent = tonumber(redis.call('GET', k .. ':b:' .. kind .. ':' .. period(kind))) or 0
  return spent + (tonumber(redis.call('HGET', k .. ':h', 'sum')) or 0)
end

local function run(k, id, lease, held)
  local lost = redis.call('HGET', k .. ':x', id)
  redis.call('ZADD', k .. ':l', now + lease, id)
  redis.call('PEXPIRE', k .. ':l', LONG)
  hold(k, id, held)
  return tonumber(lost) or 0
end

local function purge(k, kind)
  redis.call('ZREMRANGEBYSCORE', k .. ':r', '-inf', now - WINDOW)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', k .. ':t', '-inf', now - WINDOW)) do
    local amount = redis.call('HGET', k .. ':a', id)
    redis.call('ZREM', k .. ':t', id)
    redis.call('HDEL', k .. ':a', id)
    -- Not `-amount`: Lua writes a negated 0 as -0, which is no integer to Redis.
    if amount then redis.call('HINCRBY', k .. ':a', 'sum', 0 - amount) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', k .. ':l', '-inf', now)) do
    local held = tonumber(redis.call('HGET', k .. ':h', id)) or 0
    redis.call('ZREM', k .. ':l', id)
    hold(k, id, 0)
    if held > 0 then
      -- It had been sent, and nobody says what it cost.
      spend(k, kind, held)
      redis.call('HSET', k .. ':x', id, string.format('%.0f', held))
      redis.call('PEXPIRE', k .. ':x', HOUR)
    end
  end
end
"""

ADMIT: Final = (
    _COMMON
    + """
-- ARGV: 'id tokens cost lease least answer_cost', then for each key 'rpm tpm concurrency budget kind is_shared', -1 for no limit.
-- Where `least` is not 0 the tokens may be lowered to what is left, down to it; each one less costs `answer_cost` less.
-- Answer: 'admitted scope limit wait now tokens cost', then for each key 'requests newest tokens newest slots used'.
local id, tokens, cost, lease, least, answer_cost = unpack(words(ARGV[1]))
local NEVER = math.huge
local PAGE = 50
local worst, scope, limit
local found = {}

local function refuse(wait, i, which)
  if wait > worst then worst, scope, limit = wait, i - 1, which end
end

local function score(key, from, to)
  local got = redis.call('ZRANGE', key, from, to, 'WITHSCORES')
  return tonumber(got[2])
end

local function wait_for_tokens(k, need, sum)
  if need > sum then return NEVER end
  for first = 0, redis.call('ZCARD', k .. ':t') - 1, PAGE do
    local each = redis.call('ZRANGE', k .. ':t', first, first + PAGE - 1)
    for at, amount in ipairs(redis.call('HMGET', k .. ':a', unpack(each))) do
      need = need - (tonumber(amount) or 0)
      if need <= 0 then return tonumber(redis.call('ZSCORE', k .. ':t', each[at])) + WINDOW - now end
    end
  end
  return NEVER
end

local function wait_for_budget(kind)
  local days = kind <= 2 and 1 or 0
  if days == 0 then
    -- At most 31 steps, and only for a refusal.
    local this = period(kind)
    local first = time[1]
    repeat
      days = days + 1
      time[1] = first + days * 86400
    until period(kind) ~= this
    time[1] = first
  end
  return (math.floor(time[1] / 86400) + days) * 86400000 - now
end

local function judge()
  worst, scope, limit = -1, -1, -1
  for i, k in ipairs(KEYS) do
    local l, requests, sum, slots, used = unpack(found[i])
    local rpm, tpm, concurrency, budget, kind = unpack(l)
    if rpm >= 0 then
      local need = requests + 1 - rpm
      if need > 0 then refuse(need > requests and NEVER or score(k .. ':r', need - 1, need - 1) + WINDOW - now, i, 0) end
    end
    if tpm >= 0 and tokens > 0 and sum + tokens > tpm then refuse(wait_for_tokens(k, sum + tokens - tpm, sum), i, 1) end
    if concurrency >= 0 and slots >= concurrency then refuse(1000, i, 2) end
    if kind > 0 then
      local asked = math.max(1, kind % 2 == 0 and cost or tokens)
      if asked > budget then
        refuse(NEVER, i, 3)
      elseif asked > budget - used then
        refuse(wait_for_budget(kind), i, 3)
      end
    end
  end
end

local function lower()
  local less = tokens
  for i = 1, #KEYS do
    local l, requests, sum, slots, used = unpack(found[i])
    local rpm, tpm, concurrency, budget, kind = unpack(l)
    local left = budget - used
    if tpm >= 0 then less = math.min(less, tpm - sum) end
    if kind % 2 == 1 then
      less = math.min(less, left)
    elseif kind > 0 and cost > left and answer_cost > 0 then
      less = math.min(less, tokens - math.ceil((cost - left) / answer_cost))
    end
  end
  less = math.max(less, least)
  cost = math.max(0, cost - (tokens - less) * answer_cost)
  tokens = less
end

for i, k in ipairs(KEYS) do
  local l = words(ARGV[i + 1])
  purge(k, l[5])
  local requests = l[1] >= 0 and redis.call('ZCARD', k .. ':r') or 0
  local sum = l[2] >= 0 and tonumber(redis.call('HGET', k .. ':a', 'sum')) or 0
  local slots = l[3] >= 0 and redis.call('ZCARD', k .. ':l') or 0
  found[i] = { l, requests, sum, slots, l[5] > 0 and used_of(k, l[5]) or 0 }
end
judge()
if worst >= 0 and least > 0 then
  lower()
  judge()
end

local parts = { worst < 0 and 1 or 0, scope, limit, worst == NEVER and -1 or worst, now, tokens, cost }
for i, k in ipairs(KEYS) do
  local l, requests, sum, slots, used = unpack(found[i])
  local newest, last = 0, 0
  if worst < 0 then
    local kind = l[5]
    if l[6] == 1 then touch(k, kind) end
    if l[1] >= 0 then
      redis.call('ZADD', k .. ':r', now, id)
      redis.call('PEXPIRE', k .. ':r', MINUTE)
      requests, newest = requests + 1, now
    end
    if l[2] >= 0 and tokens > 0 then
      put_tokens(k, id, tokens, now)
      sum, last = sum + tokens, now
    end
    if l[3] >= 0 or kind > 0 then
      local held = kind == 0 and 0 or kind % 2 == 0 and cost or tokens
      run(k, id, lease, held)
      slots, used = slots + 1, used + held
    end
  else
    newest = l[1] >= 0 and score(k .. ':r', -1, -1) or 0
  end
  if last == 0 and l[2] >= 0 then last = score(k .. ':t', -1, -1) or 0 end
  for _, each in ipairs({ requests, newest, sum, last, slots, used }) do parts[#parts + 1] = string.format('%.0f', each) end
end
for i = 1, 7 do parts[i] = string.format('%.0f', parts[i]) end
return table.concat(parts, ' ')
"""
)
"""One admission: takes from all scopes, or from none."""

CHANGE: Final = (
    _COMMON
    + """
-- ARGV: 'id kept name more is_over is_undone tokens cost', then for each key its limits as for admission.
-- `kept`: what its entry of tokens shall count (-1: as it does); `more` tokens under `name` beside it, now;
-- `tokens` and `cost`: what it has used, or, while it runs, what it holds of budgets.
-- Answer: for each key the sum of its tokens, and what is used of its budget.
local a = words(ARGV[1])
local id, kept, name, more, is_over, is_undone, tokens, cost = unpack(a)
local sums = {}
for i, k in ipairs(KEYS) do
  local l = words(ARGV[i + 1])
  local kind = l[5]
  purge(k, kind)
  if l[6] == 1 then touch(k, kind) end
  if is_undone == 1 then redis.call('ZREM', k .. ':r', id) end
  if l[2] >= 0 then
    if kept >= 0 and redis.call('HEXISTS', k .. ':a', id) == 1 then put_tokens(k, id, kept, now) end
    if more > 0 then put_tokens(k, name, more, now) end
  end
  local used = kind == 0 and 0 or kind % 2 == 0 and cost or tokens
  if is_over == 1 then
    if redis.call('ZREM', k .. ':l', id) == 1 then
      hold(k, id, 0)
      spend(k, kind, used)
    else
      local lost = tonumber(redis.call('HGET', k .. ':x', id))
      if lost then
        spend(k, kind, used - lost)
        redis.call('HDEL', k .. ':x', id)
      end
    end
  elseif kind > 0 and redis.call('ZSCORE', k .. ':l', id) then
    hold(k, id, used)
  end
  local total = kind == 0 and 0 or used_of(k, kind)
  sums[i] = (redis.call('HGET', k .. ':a', 'sum') or '0') .. string.format(' %.0f', total)
end
return table.concat(sums, ' ')
"""
)
"""One settlement, or tokens counted while they flow."""

TELL: Final = (
    _COMMON
    + """
-- ARGV: 'kind lease is_shared', then entries 'id age is_request tokens is_live held': what one process knows of its own.
local a = words(ARGV[1])
local k, kind, lease = KEYS[1], a[1], a[2]
if a[3] == 1 then touch(k, kind) end
for i = 2, #ARGV do
  local id, age, is_request, tokens, is_live, held = unpack(words(ARGV[i]))
  if age < WINDOW then
    if is_request == 1 then
      redis.call('ZADD', k .. ':r', 'NX', now - age, id)
      redis.call('PEXPIRE', k .. ':r', MINUTE)
    end
    if tokens > 0 then put_tokens(k, id, tokens, now - age) end
  end
  if is_live == 1 then
    local lost = run(k, id, lease, held)
    if lost > 0 then
      spend(k, kind, -lost)
      redis.call('HDEL', k .. ':x', id)
    end
  end
end
return '1'
"""
)
"""Leases renewed, and after an outage what was counted elsewhere."""

SPEND: Final = """
-- KEYS: a scope; ARGV: a word used once, kind, period, amount. What was spent while nobody could be told.
local mark = KEYS[1] .. ':n:' .. ARGV[1]
if redis.call('SET', mark, '1', 'NX', 'EX', 3600) then
  local key = KEYS[1] .. ':b:' .. ARGV[2] .. ':' .. ARGV[3]
  redis.call('INCRBY', key, ARGV[4])
  redis.call('EXPIRE', key, 40 * 86400)
end
return '1'
"""

RECENT: Final = (
    _COMMON
    + """
-- KEYS: where scopes are by the time of their last use; ARGV: 'since most'.
-- Answer: 'until is_more', then for each scope in which something was counted since 'number kind requests tokens slots used'.
local a = words(ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - LONG)
local names = redis.call('ZRANGEBYSCORE', KEYS[1], a[1], '+inf', 'WITHSCORES', 'LIMIT', 0, a[2])
local is_more = #names / 2 >= a[2]
-- A whole page of one millisecond is gone through; then the rest of them is not waited for.
local last = is_more and math.max(tonumber(names[#names]), a[1] + 1) or now
local parts = { string.format('%.0f', last), is_more and '1' or '0' }
for i = 1, #names, 2 do
  local kind, k = string.match(names[i], '^(%d+) (.*)$')
  kind = tonumber(kind)
  purge(k, kind)
  local slots = redis.call('ZCARD', k .. ':l')
  local sum = redis.call('HGET', k .. ':a', 'sum') or '0'
  parts[#parts + 1] = string.format('%.0f %d', tonumber(string.sub(redis.sha1hex(k), 1, 12), 16), kind)
  parts[#parts + 1] = string.format('%d %s %d', redis.call('ZCARD', k .. ':r'), sum, slots)
  parts[#parts + 1] = string.format('%.0f', kind == 0 and 0 or used_of(k, kind))
end
return table.concat(parts, ' ')
"""
)
"""What was used lately, by whomever."""

PROBE: Final = "redis.call('SET', KEYS[1], '1', 'EX', 60) return '1'"
"""Whether the server takes writes."""
