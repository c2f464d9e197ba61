// Who is told when the service fails. What the service itself counts is in /metrics, slow answers too: the time that Azure
// knows is that until the end, and streams of events and large files have none soon.
param prefix string
param email string
param siteId string

var watched = [
  { name: 'faults', metric: 'Http5xx', operator: 'GreaterThan', threshold: 10, aggregation: 'Total' }
  { name: 'unhealthy', metric: 'HealthCheckStatus', operator: 'LessThan', threshold: 100, aggregation: 'Average' }
]

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: '${prefix}-alerts'
  location: 'global'
  properties: {
    groupShortName: take(prefix, 12)
    enabled: true
    emailReceivers: [
      {
        name: 'operators'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

resource alerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for alert in watched: {
    name: '${prefix}-${alert.name}'
    location: 'global'
    properties: {
      severity: 1
      enabled: true
      scopes: [siteId]
      evaluationFrequency: 'PT1M'
      windowSize: 'PT5M'
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: alert.name
            metricName: alert.metric
            operator: alert.operator
            threshold: alert.threshold
            timeAggregation: alert.aggregation
          }
        ]
      }
      actions: [
        {
          actionGroupId: people.id
        }
      ]
    }
  }
]
