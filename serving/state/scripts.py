"""What Redis runs as one step. The keys, all under "recsys:":

    sequence           the last sequence number given, for events and items alike
    ids                set of the event ids kept so far, those of forgotten users too
    events:USER        sorted set of a user's events, "SEQUENCE:JSON" by sequence number
    recent             sorted set of everybody's, "SEQUENCE:BYTES OF USER:USER" and the JSON
    forgotten          hash user -> UTC seconds; forgotten:after: user -> the sequence number at that moment
    versions           set of model versions with states; states:VERSION: hash user -> "AFTER:STATE"
    items              hash item -> "+CONTENT", or "-" where removed; items:order: sorted set by sequence number

Scripts that must be durable begin with a write, so that a wait for the disk covers what they found, too: another
worker may have written it a moment ago.
"""

TOUCH = "redis.call('INCRBY', 'recsys:sequence', 0)"

ADD = f"""
{TOUCH}
local kept = {{}}
for i = 1, #ARGV, 4 do
  local id, user, time, body = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local at = redis.call('HGET', 'recsys:forgotten', user)
  if (at and tonumber(at) >= time) or redis.call('SADD', 'recsys:ids', id) == 0 then
    kept[#kept + 1] = 0
  else
    local sequence = string.format('%.0f', redis.call('INCR', 'recsys:sequence'))
    redis.call('ZADD', 'recsys:events:' .. user, sequence, sequence .. ':' .. body)
    redis.call('ZADD', 'recsys:recent', sequence, sequence .. ':' .. #user .. ':' .. user .. body)
    kept[#kept + 1] = 1
  end
end
return kept
"""
"""ARGV: event id, user, time, JSON of each event. 1 for each that is kept, else 0."""

FORGET = f"""
{TOUCH}
local user, at, events = ARGV[1], tonumber(ARGV[2]), 'recsys:events:' .. ARGV[1]
local earlier = redis.call('HGET', 'recsys:forgotten', user)
if not earlier or tonumber(earlier) < at then redis.call('HSET', 'recsys:forgotten', user, ARGV[2]) end
redis.call('HSET', 'recsys:forgotten:after', user, redis.call('GET', 'recsys:sequence'))
for _, version in ipairs(redis.call('SMEMBERS', 'recsys:versions')) do
  redis.call('HDEL', 'recsys:states:' .. version, user)
end
for _, member in ipairs(redis.call('ZRANGE', events, 0, -1)) do
  local sequence = string.match(member, '^%d+')
  redis.call('ZREMRANGEBYSCORE', 'recsys:recent', sequence, sequence)
end
local deleted = redis.call('ZCARD', events)
redis.call('DEL', events)
return deleted
"""
"""ARGV: user, UTC seconds. The number of events deleted."""

SAVE = """
local version, user, after = ARGV[1], ARGV[2], tonumber(ARGV[3])
local forgotten = redis.call('HGET', 'recsys:forgotten:after', user)
if forgotten and tonumber(forgotten) >= after then return end
redis.call('SADD', 'recsys:versions', version)
redis.call('HSET', 'recsys:states:' .. version, user, ARGV[3] .. ':' .. ARGV[4])
"""
"""ARGV: version, user, after, state."""

DROP = """
local keep, deleted = {}, 0
for _, version in ipairs(ARGV) do keep[version] = true end
for _, version in ipairs(redis.call('SMEMBERS', 'recsys:versions')) do
  if not keep[version] then
    deleted = deleted + redis.call('HLEN', 'recsys:states:' .. version)
    redis.call('UNLINK', 'recsys:states:' .. version)
    redis.call('SREM', 'recsys:versions', version)
  end
end
return deleted
"""
"""ARGV: the versions to keep. The number of states deleted."""

CHANGE = f"""
{TOUCH}
for i = 1, #ARGV, 2 do
  local item, value = ARGV[i], ARGV[i + 1]
  if redis.call('HGET', 'recsys:items', item) ~= value then
    redis.call('HSET', 'recsys:items', item, value)
    redis.call('ZADD', 'recsys:items:order', redis.call('INCR', 'recsys:sequence'), item)
  end
end
"""
"""ARGV: item and its value in the hash, of each item."""

CHANGED = """
local found = {}
local order = redis.call(
  'ZRANGEBYSCORE', 'recsys:items:order', '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #order, 2 do
  found[#found + 1] = order[i + 1]
  found[#found + 1] = order[i]
  found[#found + 1] = redis.call('HGET', 'recsys:items', order[i])
end
return found
"""
"""ARGV: after, at most so many. Sequence number, item and its value in the hash, of each item."""
