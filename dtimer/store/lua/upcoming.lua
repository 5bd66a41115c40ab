-- One page of the scheduled events, in due order. Those in flight are passed over.
--
-- ARGV[3]   not due before, in µs since the epoch or '+<µs>' from now; '-inf' for all
-- ARGV[4]   not due after, likewise; '+inf' for all
-- ARGV[5]   how many to look at
-- ARGV[6]   the last id of the page before; '' for the first page
-- ARGV[7]   and its score
--
-- Returns   {low, high, last id, last score, events}
--   low, high the bounds as absolute scores, to be given again for the next page
--   last      where this page ended; '' when there is no more
--   events    id, due, tries and body of each in turn
local function bound(text)
  if string.match(text, '^%+%-?%d') then return digits(NOW + tonumber(string.sub(text, 2))) end
  return text
end

local low, high = bound(ARGV[3]), bound(ARGV[4])
local from
if ARGV[6] == '' then
  from = redis.call('ZCOUNT', DUE, '-inf', '(' .. low)
  if low == '-inf' then from = 0 end
else
  -- Where the last one has moved or gone meanwhile, start again at its score: the
  -- caller drops those that it has seen.
  local score = redis.call('ZSCORE', DUE, ARGV[6])
  if score == ARGV[7] then
    from = redis.call('ZRANK', DUE, ARGV[6]) + 1
  else
    from = redis.call('ZCOUNT', DUE, '-inf', '(' .. ARGV[7])
  end
end

local limit = tonumber(ARGV[5])
local page = redis.call('ZRANGE', DUE, from, from + limit - 1, 'WITHSCORES')
local ids, events = {}, {}
local last, last_score = '', ''
for i = 1, #page, 2 do ids[#ids + 1] = page[i] end
if #ids > 0 then
  local leases = redis.call('HMGET', LEASE, unpack(ids))
  local tries = redis.call('HMGET', TRIES, unpack(ids))
  local bodies = redis.call('HMGET', BODY, unpack(ids))
  local top = high == '+inf' and math.huge or tonumber(high)
  for i, id in ipairs(ids) do
    if tonumber(page[2 * i]) > top then break end
    if not leases[i] then
      for _, v in ipairs({id, page[2 * i], tries[i] or '0', bodies[i] or ''}) do
        events[#events + 1] = v
      end
    end
    if i == limit then last, last_score = id, page[2 * i] end
  end
end
return {low, high, last, last_score, events}
