-- Return one page of the waiting events, in order of due time. Events in flight are skipped.
--
-- Kind      reads
-- Uses      events schedule walk
-- Commands  hget hmget zcount zrange
--
-- Arguments
--   limit        number: how many events to look at
--   low          the earliest due time: µs since the epoch, or '+<µs>' from now; '-inf' for none
--   high         the latest due time, likewise; '+inf' for none
--   after_score  the score at which the previous page ended; '' for the first page
--   after_id     its id
--   end_score    the end, as the first page returned it; '' for the first page
--   end_id       its id
--
-- Returns   {now, end score, end id, last score, last id, events}
--   end       the last position that existed when the first page was read; '' if there was none
--   last      where this page ended; '' if no other page follows
--   events    id, due, tries, body and mark of each. The mark is p for the pending occurrence
--             of a schedule, else ''
local function bound(text)
  if string.match(text, '^%+%-?%d') then return digits(NOW + tonumber(string.sub(text, 2))) end
  return text
end

local from
if after_score == '' then
  local first = bound(low)
  from = first == '-inf' and 0 or redis.call('ZCOUNT', DUE, '-inf', '(' .. first)
  end_score, end_id = last_place(DUE, bound(high))
else
  from = rank_after(DUE, after_score, after_id)
end

local page = end_score == '' and {}
  or redis.call('ZRANGE', DUE, from, from + limit - 1, 'WITHSCORES')
local ids = {}
for i = 1, #page, 2 do ids[#ids + 1] = page[i] end
if #ids == 0 then return {digits(NOW), end_score, end_id, '', '', {}} end

local function mark_of(id, body)
  local _, _, mark = parse_body(body)
  if mark ~= 's' then return '' end
  local schedule, nominal = schedules().parse_occurrence_id(id)
  local state = schedule and schedules().read_state(schedule)
  return state and state.next == nominal and 'p' or ''
end

local leases = redis.call('HMGET', LEASE, unpack(ids))
local tries = redis.call('HMGET', TRIES, unpack(ids))
local events, bytes = {}, 0
local last_score, last_id = '', ''
for i, id in ipairs(ids) do
  local score = page[2 * i]
  if comes_after(score, id, end_score, end_id) then break end
  if not leases[i] then
    local body = redis.call('HGET', BODY, id) or ''
    for _, v in ipairs({id, score, tries[i] or '0', body, mark_of(id, body)}) do
      events[#events + 1] = v
    end
    bytes = bytes + #body
  end
  if i == limit or bytes > MOST_PAGE then
    last_score, last_id = score, id
    break
  end
end
return {digits(NOW), end_score, end_id, last_score, last_id, events}
